"""Handwritten digits, to pre-train a classifier on."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = ["COUNT", "DIGITS", "digits"]

DIGITS = 10
COUNT = 1500  # of scikit-learn's 1,797; the others are left for a look at how well they are read


def digits(size: tuple[int, ...], count: int) -> tuple[Tensor, Tensor]:
    """Return handwritten digits to pre-train on, as scikit-learn ships them.

    They are real images, nothing has to be downloaded, a network learns them within a minute, and they have neither
    content nor contrast in common with X-rays: what is transferred are strokes and edges.

    Args:
        size: Height and width of the images in pixels.
        count: Number of images, at most ``COUNT``.

    Returns:
        Images (count, 1, height, width) in [-1, 1] and labels (count,) from 0 to 9.

    Example:
        >>> images, labels = digits((28, 28), 100)
        >>> images.shape, labels.shape
        (torch.Size([100, 1, 28, 28]), torch.Size([100]))
    """
    from sklearn.datasets import load_digits

    dataset = load_digits()
    order = torch.randperm(len(dataset.target), generator=torch.Generator().manual_seed(0))[:count]
    images = torch.from_numpy(dataset.images).float()[:, None] / 8 - 1
    # By way of 28 x 28, the size of MedMNIST's images, in which version 0.1 resized digits to all other sizes.
    for side in ((28, 28), size):
        images = interpolate(images, side, mode="bilinear", align_corners=False)
    return images[order], torch.from_numpy(dataset.target)[order]
