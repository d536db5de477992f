"""One adaptation of the learning rates, from the last step and the meta gradient."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from layertune.metalr.correcting.displacement import measured_steps
from layertune.metalr.correcting.rules import NEEDS_NORMS, RULES, alignment, bounded
from layertune.metalr.inner_products import inner_products
from layertune.metalr.sections import Sections
from layertune.metalr.settings import MetaLRSettings

__all__ = ["Adaptation", "adaptation"]


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
    sums = inner_products(groups, sections.of_parameter, measured_steps(groups), like=sections.members, norms=norms)
    sums = sums * torch.stack([applied, torch.ones_like(applied), applied.square()])
    if norms:  # parameters with a gradient of 0 have not moved either
        used = torch.where(sums[2] > 0, used, 0.0)
    meta = alignment(sums, used, sections.members, grad_scale)
    max_lr = float("inf") if settings.max_lr is None else settings.max_lr
    ratio = bounded(
        RULES[settings.rule](settings.eta, meta), meta.alpha, settings.lowest_lr, max_lr, settings.max_change
    )
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
