"""A transform that refuses label maps with values that are no classes of the task."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform

from layertune_monai.errors import LabelError

__all__ = ["CheckLabelsd"]


class CheckLabelsd(MapTransform):
    """Refuse a label map that holds a value other than the classes of the task, and name its file.

    Without this check a wrong label causes an index error deep inside the loss. On a GPU it ends the process.

    Args:
        keys: The keys of the label maps.
        num_classes: The number of classes, the background included. The allowed values are 0 to ``num_classes - 1``.

    Example:
        >>> import torch
        >>> CheckLabelsd("label", num_classes=2)({"label": torch.tensor([0, 1, 3])})
        Traceback (most recent call last):
        layertune_monai.errors.LabelError: the label map holds the values 3; this task has 2 classes, 0 to 1; ...
    """

    def __init__(self, keys: KeysCollection, num_classes: int) -> None:
        super().__init__(keys)
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check each label map of a case.

        Args:
            data: The case, which is returned as it is.

        Raises:
            LabelError: A label map holds another value.
        """
        checked = dict(data)
        for key in self.key_iterator(checked):
            values = np.unique(np.asarray(checked[key]))
            wrong = values[~np.isin(values, np.arange(self.num_classes))]
            if wrong.size:
                file = getattr(checked[key], "meta", {}).get("filename_or_obj", f"the {key} map")
                raise LabelError(
                    f"{file} holds the values {', '.join(f'{value:g}' for value in wrong[:5])}; this task has "
                    f"{self.num_classes} classes, 0 to {self.num_classes - 1}; correct the file, or name all classes "
                    "under 'labels' in dataset.json"
                )
        return checked
