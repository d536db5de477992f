"""One adaptation of the learning rates, from the last step and the meta gradient."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from layertune.metalr.inner_products import inner_products
from layertune.metalr.rules import NEEDS_NORMS, RULES, alignment, bounded
from layertune.metalr.sections import Sections
from layertune.metalr.settings import MetaLRSettings

__all__ = ["Adaptation", "Skipped", "adaptation"]


class Adaptation(NamedTuple):
    """What one adaptation gives, as tensors on the device of the parameters.

    Attributes:
        ratio: The factor by which each layer's rate changes.
        scales: The learned factors after the adaptation, one for each layer.
        lrs: The learning rates that the last step would have been made with, one for each layer.
        applied: The factor that the displacement was applied with, one for each section.
        overflowed: A scalar: whether the meta gradient was not finite, so that nothing is learned.
    """

    ratio: Tensor
    scales: Tensor
    lrs: Tensor
    applied: Tensor
    overflowed: Tensor


def adaptation(
    groups: Sequence[dict[str, Any]],
    sections: Sections,
    settings: MetaLRSettings,
    *,
    grad_scale: float | Tensor = 1.0,
    found_inf: Tensor | None = None,
) -> Adaptation:
    """Apply equation 3 of MetaLR, or another rule, to the last step.

    Args:
        groups: Param groups with the displacement of the last step and the meta gradient.
        sections: How the groups make up layers.
        settings: The rule, its step size and its limits.
        grad_scale: The factor that the meta loss was multiplied by.
        found_inf: 1 where AMP has found an overflow. That is usual, so nothing is learned and nobody is warned.
    """
    scales = sections.read_scales(groups)
    norms = settings.rule in NEEDS_NORMS
    used, applied = _used_and_applied(groups, sections, scales)
    sums = inner_products(groups, sections.of_parameter, like=sections.members, norms=norms)
    sums = sums * torch.stack([applied, torch.ones_like(applied), applied.square()])
    if norms:  # parameters with a gradient of 0 have not moved either
        used = torch.where(sums[2] > 0, used, 0.0)
    meta = alignment(sums, used, sections.members, grad_scale)
    max_lr = float("inf") if settings.max_lr is None else settings.max_lr
    ratio = bounded(RULES[settings.rule](settings.eta, meta), meta.alpha, settings.min_lr, max_lr, settings.max_change)
    finite = torch.isfinite(sums).all() & torch.isfinite(meta.h).all()
    usual = torch.ones_like(finite) if found_inf is None else found_inf.reshape(()) == 0
    ratio = torch.where(finite & usual, ratio, 1.0)
    return Adaptation(ratio, scales * ratio, meta.alpha * ratio, applied, ~finite & usual)


def _used_and_applied(groups: Sequence[dict[str, Any]], sections: Sections, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each section the learning rate of its last step, 0 if it made none, and the factor on D."""
    moved = sections.moved(groups)
    used, applied = [], []
    for section, (group, layer) in enumerate(zip(sections.group_of, sections.layer_of, strict=True)):
        step = groups[group].get("meta_step", {})
        used.append(scales[layer] * step["lr"] if section in moved else torch.zeros_like(scales[layer]))
        # A step that version 0.1 saved was saved as it was applied.
        applied.append(scales[layer] * step["unit"] if "unit" in step else torch.ones_like(scales[layer]))
    return torch.stack(used), torch.stack(applied)


class Skipped:
    """Count, on the device, the adaptations with a meta gradient that was not finite, and warn of the first."""

    def __init__(self, device: torch.device) -> None:
        self._count = torch.zeros((), dtype=torch.int64, device=device)
        self._warned = False

    @property
    def count(self) -> int:
        """The number of adaptations. Reading it waits for the device."""
        return int(self._count.item())

    def add(self, overflowed: Tensor) -> None:
        """Count one more if ``overflowed`` is true."""
        self._count += overflowed

    def warn(self, step: int) -> None:
        """Warn once there was a first case. Until then each call waits for the device."""
        if not self._warned and self.count:
            self._warned = True
            warnings.warn(
                f"the meta gradient was not finite at or before step {step}: nothing was learned from it and the step "
                "was kept; further cases are only counted, in MetaLR.skipped",
                RuntimeWarning,
                stacklevel=4,
            )
