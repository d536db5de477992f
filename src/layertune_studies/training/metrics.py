"""The scores of a trained network on held-out cases."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.metrics import ConfusionMatrixMetric, DiceMetric, compute_roc_auc
from monai.networks import one_hot
from torch import Tensor, nn

from layertune_studies.data.case import Case

__all__ = ["CLASSIFICATION", "SEGMENTATION", "Scores", "classification_scores", "evaluate", "label_map"]

Scores = dict[str, float]
CLASSIFICATION = ("accuracy", "balanced_accuracy", "auc", "macro_auc", "sensitivity", "specificity")
SEGMENTATION = ("dice", "ppv", "sensitivity")
BATCH = 128


@torch.no_grad()
def evaluate(network: nn.Module, cases: Sequence[Case], *, classes: int, patch: tuple[int, ...] | None) -> Scores:
    """Evaluate a network.

    Args:
        network: A network that gives scores of the classes, for an image or for each voxel. It is left in eval mode.
        cases: The cases to score, which were not trained on.
        classes: The number of classes, the background included.
        patch: Size of the window that slides over volumes, or of the middle of an image that is looked at; None for
            whole volumes or images.

    Returns:
        For images ``CLASSIFICATION`` and ``sensitivity_N`` of each class N; for volumes ``SEGMENTATION``, the means
        over cases and foreground classes.
    """
    network.eval()
    device = next(network.parameters()).device
    if not cases[0].label.ndim:
        chunks = [cases[start : start + BATCH] for start in range(0, len(cases), BATCH)]
        batches = (torch.stack([_middle(case.image, patch) for case in chunk]).to(device) for chunk in chunks)
        outputs = [network(batch).float().cpu() for batch in batches]
        return classification_scores(torch.cat(outputs).softmax(1), torch.stack([case.label for case in cases]))
    return _segmentation_scores(network, cases, classes, patch, device)


@torch.no_grad()
def label_map(network: nn.Module, image: Tensor, patch: tuple[int, ...] | None) -> Tensor:
    """Return the label map (1, x, y, z) that a network predicts for a volume (channels, x, y, z).

    Args:
        network: A network in eval mode, on the device of the volume.
        image: The volume, of shape (channels, x, y, z).
        patch: The size of the window that slides over the volume; None: the network takes the whole.
    """
    batch = image[None]
    output = network(batch) if patch is None else sliding_window_inference(batch, patch, 2, network)
    scores = torch.as_tensor(output[0] if isinstance(output, list | tuple) else output)
    return scores.argmax(1)


def classification_scores(shares: Tensor, labels: Tensor) -> Scores:
    """Compute accuracy, recalls and the area under the ROC curve.

    Args:
        shares: Probabilities of shape (cases, classes); each row sums to 1.
        labels: Whole numbers of shape (cases,); 0 is the normal finding.

    Returns:
        ``auc`` is the mean AUC of each class above 0 against the rest, and ``macro_auc`` that of all classes, which is
        the same for two. ``sensitivity`` is the mean recall of the classes above 0, ``specificity`` the recall of class
        0. A class without a case is left out of the means.

    Example:
        >>> shares = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]])
        >>> scores = classification_scores(shares, torch.tensor([0, 0, 1, 1]))
        >>> scores["accuracy"], scores["sensitivity"], scores["specificity"], scores["auc"]
        (0.5, 0.5, 0.5, 0.75)
    """
    predicted = shares.argmax(1)
    recalls = {
        number: float((predicted[labels == number] == number).float().mean())
        for number in range(shares.shape[1])
        if (labels == number).any()
    }
    findings = [recall for number, recall in recalls.items() if number]
    return {
        "accuracy": float((predicted == labels).float().mean()),
        "balanced_accuracy": float(np.mean(list(recalls.values()))),
        "auc": _auc(shares, labels, range(1, shares.shape[1])),
        "macro_auc": _auc(shares, labels, range(shares.shape[1])),
        "sensitivity": float(np.mean(findings)) if findings else 0.0,
        "specificity": recalls.get(0, 0.0),
        **{f"sensitivity_{number}": recall for number, recall in recalls.items()},
    }


def _middle(image: Tensor, patch: tuple[int, ...] | None) -> Tensor:
    """Return the middle of an image (channels, height, width), or all of it."""
    if patch is None:
        return image
    starts = [(side - part) // 2 for side, part in zip(image.shape[1:], patch, strict=True)]
    rows, columns = (slice(start, start + part) for start, part in zip(starts, patch, strict=True))
    return image[:, rows, columns]


def _auc(shares: Tensor, labels: Tensor, classes: Sequence[int]) -> float:
    """Return the mean AUC of some classes, each against the rest; 0.5 if none has cases on both sides."""
    areas: list[Any] = []
    for number in classes:
        truth = (labels == number).int()
        if 0 < int(truth.sum()) < len(truth):
            areas.append(compute_roc_auc(shares[:, number], truth))
    return float(np.mean(areas)) if areas else 0.5


def _segmentation_scores(
    network: nn.Module, cases: Sequence[Case], classes: int, patch: tuple[int, ...] | None, device: torch.device
) -> Scores:
    dice: Any = DiceMetric(include_background=False)
    counts = ConfusionMatrixMetric(
        include_background=False, metric_name=("precision", "sensitivity"), compute_sample=True
    )
    for case in cases:
        predicted = label_map(network, case.image.to(device), patch)[None]
        pair = one_hot(predicted, classes), one_hot(case.label[None].to(device), classes)
        with warnings.catch_warnings():
            # A case without a class has no Dice for it; the mean leaves it out.
            warnings.filterwarnings("ignore", message=".*ground truth of class.*all 0")
            dice(*pair)
            counts(*pair)
    ppv, sensitivity = counts.aggregate()
    means = (torch.as_tensor(value).nan_to_num(0.0).item() for value in (dice.aggregate(), ppv, sensitivity))
    by_class = dice.get_buffer().nanmean(0).nan_to_num(0.0).tolist()
    return {
        **dict(zip(SEGMENTATION, means, strict=True)),
        **{f"dice_{number}": value for number, value in enumerate(by_class, 1)},
    }
