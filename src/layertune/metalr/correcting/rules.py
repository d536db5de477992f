"""How a layer's learning rate follows its meta gradient: pure functions of tensors with one entry for each layer.

The recipe "add a rule" in ``CONTRIBUTING.md`` says what a new rule needs beside its function.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["HYPER_LR", "NEEDS_NORMS", "RULES", "Alignment", "alignment", "bounded"]

TOGETHER = 5.0  # weight of the cosine of all layers against a layer's own cosine, in the rule "joint"


class Alignment(NamedTuple):
    """What one meta pass gives for each layer j, as vectors over layers.

    Attributes:
        alpha: The learning rates that the step was made with.
        h: dL_meta/dalpha_j = -<g_j, u_j>, the derivative of the meta loss at the looked-ahead weights.
        cosine: cos(g_j, u_j), or 0 where g_j or u_j is 0.
        joint: A scalar: the cosine of g and the whole step (alpha_j u_j)_j of all layers that moved.
    """

    alpha: Tensor
    h: Tensor
    cosine: Tensor
    joint: Tensor


def alignment(sums: Tensor, alpha: Tensor, members: Tensor, grad_scale: float | Tensor) -> Alignment:
    """Turn inner products by section into what each layer learns from.

    Args:
        sums: Rows <g, d>, |g|^2, |d|^2 over each section, with the displacement d = -alpha u.
        alpha: The learning rate of each section in that step, 0 where it did not move.
        members: A 0/1 matrix of layers x sections.
        grad_scale: The factor that the meta loss was multiplied by.

    Returns:
        One entry for each layer. A layer's alpha is that of its first section that moved, and 0 if none did. Its other
        sections keep their ratio to it, so by the chain rule h is <g, d> / alpha over all of them.
    """
    moved = members * alpha
    alpha = moved.gather(1, (moved > 0).to(torch.uint8).argmax(dim=1, keepdim=True)).squeeze(1)
    layers = (members @ sums.T).T
    h = torch.where(alpha > 0, layers[0] / alpha, 0.0) / grad_scale
    together = torch.where(alpha > 0, layers, 0.0).sum(dim=1)
    return Alignment(alpha, h, _cosine(*layers), _cosine(*together))


def _cosine(dot: Tensor, g_square: Tensor, d_square: Tensor) -> Tensor:
    lengths = (g_square * d_square).sqrt()
    return torch.where(lengths > 0, -dot / lengths, 0.0)


def additive(eta: float, meta: Alignment) -> Tensor:
    """Return alpha'/alpha for alpha' = alpha - eta h (MetaLR eq. 3)."""
    return 1 - eta * meta.h / meta.alpha


def proportional(eta: float, meta: Alignment) -> Tensor:
    """Return alpha'/alpha for alpha' = alpha (1 - eta h), as in the authors' later work. eta has no unit of alpha."""
    return 1 - eta * meta.h


def cosine(eta: float, meta: Alignment) -> Tensor:
    """Return alpha'/alpha for alpha' = alpha exp(eta cos(-g, -u)), which no scale of loss or weights changes."""
    return torch.exp(eta * meta.cosine)


def joint(eta: float, meta: Alignment) -> Tensor:
    """Return the ratio for alpha'_j = alpha_j exp(eta (cos(-g_j, -u_j) + 5 cos(-g, d))), d the step of all layers.

    If the start is wrong by an order of magnitude, it is so in all layers, and they move together and fast. Once the
    whole step neither falls short nor overshoots, each layer follows its own cosine. A layer that moved and has no meta
    gradient follows the others.
    """
    return torch.exp(eta * (meta.cosine + TOGETHER * meta.joint))


Rule = Callable[[float, Alignment], Tensor]
RULES: dict[str, Rule] = {"additive": additive, "proportional": proportional, "cosine": cosine, "joint": joint}
NEEDS_NORMS = ("cosine", "joint")
"""Rules that need the lengths of gradient and step, not only their inner product."""
HYPER_LR = {"joint": 0.1, "cosine": 0.05, "proportional": 0.1}
"""The default of eta for each rule. The additive rule has none: its eta has a unit, rate squared over loss."""


def bounded(ratio: Tensor, alpha: Tensor, min_lr: float, max_lr: float, max_change: float) -> Tensor:
    """Keep alpha' = ratio alpha in [min_lr, max_lr] and its change within max_change.

    The bounds limit what is learned, not the schedule: a rate that the schedule has brought below ``min_lr`` is not
    raised to it, only not lowered further; the same above ``max_lr``.

    Args:
        ratio: The ratio alpha'/alpha that a rule proposes, one entry for each layer.
        alpha: The learning rate of each layer in the last step, the schedule included.
        min_lr: The smallest rate that may be learned, >= 0.
        max_lr: The largest rate that may be learned; infinity sets no limit.
        max_change: The largest factor, up or down, of one adaptation, > 1.

    Returns:
        The ratio within the bounds; 1 where alpha is 0.
    """
    ratio = ratio.clamp(1 / max_change, max_change)
    lowest = (min_lr / alpha).clamp(max=1.0)
    highest = (max_lr / alpha).clamp(min=1.0)
    return torch.where(alpha > 0, torch.maximum(torch.minimum(ratio, highest), lowest), 1.0)
