"""One adaptation of the learning rates: what the waiting step and the meta gradient make of each layer's."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from layertune.metalr.displacement import pair_sums
from layertune.metalr.rules import NEEDS_NORMS, RULES, alignment, bounded
from layertune.metalr.sections import Layout
from layertune.metalr.settings import MetaLRSettings

__all__ = ["Adaptation", "Limits", "Skipped", "adaptation"]


class Limits(NamedTuple):
    """Floor and ceiling of the learned rates, and the largest factor, up or down, of one adaptation."""

    min_lr: float
    max_lr: float
    max_change: float

    @classmethod
    def of(cls, settings: MetaLRSettings) -> Self:
        """Read the limits from the settings; no ``max_lr`` is an infinite one."""
        return cls(settings.min_lr, float("inf") if settings.max_lr is None else settings.max_lr, settings.max_change)


class Adaptation(NamedTuple):
    """Vectors over layers, all on the parameters' device.

    Attributes:
        scales: the learned factors before.
        ratio: what they are multiplied by.
        lrs: the rates that the waiting step would have been made with.
        overflowed: scalar, whether the meta gradient was not finite and nothing is learned.
    """

    scales: Tensor
    ratio: Tensor
    lrs: Tensor
    overflowed: Tensor


def adaptation(
    groups: Sequence[dict[str, Any]],
    layout: Layout,
    *,
    rule: str,
    hyper_lr: float,
    limits: Limits,
    grad_scale: float | Tensor = 1.0,
    found_inf: Tensor | None = None,
) -> Adaptation:
    """Equation 3 (MetaLR), or another rule, for the step that waits.

    Args:
        groups: param groups with the displacement of that step and the meta gradient.
        layout: their layers.
        rule: a name of ``RULES``.
        hyper_lr: eta.
        limits: of what is learned.
        grad_scale: what the meta loss was multiplied by.
        found_inf: AMP's own finding of an overflow, which is usual and no case to warn of; nothing is learned then.
    """
    scales = layout.read_scales(groups)
    lrs = [groups[group].get("meta_step", {"lr": 0.0})["lr"] for group in layout.group_of]
    used = torch.stack([scales[layer] * lr for layer, lr in zip(layout.layer_of, lrs, strict=True)])
    sums = pair_sums(groups, layout.sections, like=layout.members, norms=rule in NEEDS_NORMS)
    meta = alignment(sums, used, layout.members, grad_scale)
    ratio = bounded(RULES[rule](hyper_lr, meta), meta.alpha, *limits)
    finite = torch.isfinite(sums).all() & torch.isfinite(meta.h).all()
    usual = torch.ones_like(finite) if found_inf is None else found_inf.reshape(()) == 0
    ratio = torch.where(finite & usual, ratio, 1.0)
    return Adaptation(scales, ratio, meta.alpha * ratio, ~finite & usual)


class Skipped:
    """Counts, on the device, adaptations that were left out because the meta gradient was not finite; warns once."""

    def __init__(self, device: torch.device) -> None:
        self._count = torch.zeros((), dtype=torch.int64, device=device)
        self._warned = False

    @property
    def count(self) -> int:
        """How many; waits for the device."""
        return int(self._count.item())

    def add(self, overflowed: Tensor) -> None:
        """Count one more where it is true."""
        self._count += overflowed

    def warn(self, step: int) -> None:
        """Tell of the first case; waits for the device until then."""
        if not self._warned and self.count:
            self._warned = True
            warnings.warn(
                f"the meta gradient was not finite at step {step}: no rate was learned from it and the step was kept; "
                "further cases are only counted, in MetaLR.skipped",
                RuntimeWarning,
                stacklevel=4,
            )
