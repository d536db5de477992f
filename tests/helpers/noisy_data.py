"""Data whose samples tell which they are and what was drawn for them."""

import random

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["SIZE", "Noisy"]

SIZE = 20


class Noisy(Dataset):
    """Its samples are their numbers, and noise from all three generators."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        noise = [torch.rand(()).item(), random.random(), np.random.rand()]  # noqa: NPY002
        return index, torch.tensor(noise)
