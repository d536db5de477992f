"""Handwritten digits, to pre-train a classifier on."""

import torch
from torch.nn.functional import interpolate
from torch.utils.data import TensorDataset

__all__ = ["SIDE", "digits"]


SIDE = 28


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Handwritten digits to pre-train on, as scikit-learn brings them, made as large as the X-rays.

    They are real images, nothing has to be downloaded, both networks learn them within a minute, and they have neither
    content nor contrast in common with X-rays: what is transferred are strokes and edges.

    Returns:
        1,500 digits to train on and 297 to test: images (1, 28, 28) in [-1, 1] and labels from 0 to 9.

    Example:
        >>> [len(part) for part in digits()]
        [1500, 297]
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images).float()[:, None] / 8 - 1
    large = interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(found.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    first, last = order[:1500], order[1500:]
    return TensorDataset(large[first], labels[first]), TensorDataset(large[last], labels[last])
