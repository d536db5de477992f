"""LRProfile: the learning rates that MetaLR learned over time; saved, loaded, summarised, replayed in any host."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from os import PathLike
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, NamedTuple

from layertune.errors import ProfileError
from layertune.rates.profile_file import read_fields, write_fields
from layertune.rates.replay import Replay

if TYPE_CHECKING:
    from torch.optim import Optimizer

__all__ = ["LRProfile", "ProfileSummary"]

LARGEST_INTEGER = 2**63 - 1  # the largest number in a file


class ProfileSummary(NamedTuple):
    """Describe how learned rates vary over depth, in decades (1.0 = a factor of ten); see ``LRProfile.summary``.

    Attributes:
        domain_specificity: How far the rates of the shallow third are above those of the middle third.
        task_specificity: How far the rates of the deep third, head included, are above those of the middle third.
        u_shape: The smaller of both. It is positive if the rates form a U.
    """

    domain_specificity: float
    task_specificity: float
    u_shape: float


@dataclass(frozen=True)
class LRProfile:
    """Hold the learning rates of each layer over time.

    Lists are accepted and kept as tuples. With T records and L layers:

    Attributes:
        layers: Unique names of the layers in order of depth; length L.
        depths: The depth of each layer, 1 for the shallowest. Layers may share a depth. Length L.
        steps: The number of optimizer steps at each record, counted from 1, ascending; length T.
        scales: The learned factors on the schedule's learning rate, (T, L). Row t applies to step ``steps[t]`` itself
            (MetaLR corrects the step that it learns from) and until the next record.
        lrs: The resulting learning rates, alpha_j of MetaLR eq. 3, (T, L).

    Raises:
        ProfileError: Lengths do not match, steps do not ascend, a name comes twice, or a number is negative, not finite
            or not a number.

    Example:
        >>> profile = LRProfile(("stem", "block", "head"), (1, 2, 3), (1, 2), [[1, 1, 1], [2, 1, 4]],
        ...                     [[.01, .01, .01], [.02, .01, .04]])
        >>> print(profile)
        LRProfile of 3 layers after 2 steps (2 records): stem 0.02, block 0.01, head 0.04
    """

    layers: tuple[str, ...]
    depths: tuple[int, ...]
    steps: tuple[int, ...]
    scales: tuple[tuple[float, ...], ...]
    lrs: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        layers, steps = _names(self.layers), _integers("steps", self.steps)
        clean = {
            "layers": layers,
            "depths": _integers("depths", self.depths),
            "steps": steps,
            "scales": _table("scales", self.scales, len(steps), len(layers)),
            "lrs": _table("lrs", self.lrs, len(steps), len(layers)),
        }
        for name, value in clean.items():
            object.__setattr__(self, name, value)
        if len(self.depths) != len(layers):
            raise ProfileError(f"expected one depth a layer, got {len(self.depths)} for {len(layers)} layers")
        if any(later <= earlier for earlier, later in pairwise(steps)):
            raise ProfileError("steps must ascend, each moment once")

    def __str__(self) -> str:
        last = f"{self.steps[-1]} steps" if self.steps else "no step"
        rates = zip(self.layers, self.lrs[-1], strict=True) if self.lrs else ()
        listed = ", ".join(f"{name} {rate:.3g}" for name, rate in rates)
        return f"LRProfile of {len(self.layers)} layers after {last} ({len(self.steps)} records)" + (
            f": {listed}" if listed else ""
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write the profile to a file, bit for bit. A reader finds the old file or the whole new one.

        Args:
            path: A path that ends in ``.json`` (readable) or ``.safetensors`` (smaller).

        Raises:
            ProfileError: The path has another suffix.
            SaveError: The folder is missing or cannot be written to.
        """
        write_fields(Path(path), {field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> LRProfile:
        """Read a profile that ``save`` wrote. No code in the file is executed.

        Raises:
            ProfileError: There is no such file, it is damaged, or it is not a profile. The message names the file and
                what is wrong.
        """
        content = read_fields(Path(path))
        try:
            return cls(**content)
        except ProfileError as error:
            raise ProfileError(f"cannot load the profile {path}: {error}") from None

    def replay(self, optimizer: Optimizer) -> Replay:
        """Use the learned rates on a new optimizer, without a meta pass.

        Step t, counted from 1, is made with the factor of the last record at or before t, which MetaLR made its t-th
        step with. Before the first record the factor is 1. The factor multiplies the rate of the host's schedule for
        the length of the step. MetaLR thins the records of runs with more than 2048 adaptations; between two records
        the replay keeps the factor of the earlier one.

        Args:
            optimizer: An optimizer with param groups that name their layers under ``"layer"``, as ``param_groups``
                makes them. Several groups may name one layer.

        Returns:
            A handle with ``detach()``, also a context manager. Its position is saved and loaded with the optimizer's
            ``state_dict``.

        Raises:
            ProfileError: A layer of the optimizer is not in the profile. The message lists both sides.
            OptimizerError: The optimizer's learning rates are multiplied already.

        Warns:
            UserWarning: The profile has layers that the optimizer does not have. They may be frozen, or the networks
                differ.

        Example:
            >>> import torch
            >>> weight = torch.nn.Parameter(torch.ones(1))
            >>> optimizer = torch.optim.SGD([{"params": [weight], "layer": "head"}], lr=0.1)
            >>> with LRProfile(("head",), (1,), (1,), [[5.0]], [[0.5]]).replay(optimizer):
            ...     weight.sum().backward()
            ...     optimizer.step()
            >>> round(weight.item(), 3)
            0.5
        """
        return Replay(optimizer, layers=self.layers, steps=self.steps, scales=self.scales)

    def converged(self) -> dict[str, float]:
        """Return the rate of each layer in the last quarter of training, which the papers' figures show over depth.

        This is the geometric mean of the records after 3/4 of the last step. Rates of 0 have no logarithm and are left
        out (the end of a decay, a frozen layer). A layer with rates of 0 only has the value 0.

        Raises:
            ProfileError: Nothing was recorded.
        """
        if not self.steps:
            raise ProfileError("the profile has no records; train at least one step with MetaLR")
        rows = [row for step, row in zip(self.steps, self.lrs, strict=True) if 4 * step > 3 * self.steps[-1]]
        return {name: _geometric_mean(rates) for name, rates in zip(self.layers, zip(*rows, strict=True), strict=True)}

    def summary(self) -> ProfileSummary:
        r"""Measure the U: whether both ends of the network learned higher rates than its middle (MetaLR sec. 3.2).

        With a_j the converged rate of layer j (see ``converged``) and D depths, let l(k) be the mean of log10 a_j over
        the layers of the k-th depth. The shallow and the deep third are floor(D / 3) depths each, the middle is the
        rest, and

            domain_specificity = mean l(shallow) - mean l(middle)
            task_specificity   = mean l(deep)    - mean l(middle)
            u_shape            = min(domain_specificity, task_specificity)

        Logarithms are used because rates are learned as factors and range over decades. Their differences do not
        depend on the schedule, which all layers share. The mean by depth counts a depth with many layers (I2) once. The
        minimum is taken because one raised end is a slope and not a U. The deep third includes the head and its initial
        rate: ten times the others' adds 1.0 / (depths in the deep third) decades. Layers with a rate of 0 (frozen) are
        left out.

        Raises:
            ProfileError: Nothing was recorded, or fewer than 3 depths have a rate.

        Example:
            >>> profile = LRProfile(("a", "b", "c"), (1, 2, 3), (1,), [[1, 1, 1]], [[1e-2, 1e-3, 1e-1]])
            >>> [round(decades, 3) for decades in profile.summary()]
            [1.0, 2.0, 1.0]
        """
        by_depth: dict[int, list[float]] = {}
        for depth, rate in zip(self.depths, self.converged().values(), strict=True):
            if rate > 0:
                by_depth.setdefault(depth, []).append(math.log10(rate))
        if len(by_depth) < 3:
            raise ProfileError(f"a U needs at least 3 depths with a rate above 0, and this profile has {len(by_depth)}")
        levels = [_mean(by_depth[depth]) for depth in sorted(by_depth)]
        third = len(levels) // 3
        middle = _mean(levels[third:-third])
        domain, task = _mean(levels[:third]) - middle, _mean(levels[-third:]) - middle
        return ProfileSummary(domain, task, min(domain, task))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _geometric_mean(rates: Iterable[float]) -> float:
    logs = [math.log(rate) for rate in rates if rate > 0]
    return math.exp(_mean(logs)) if logs else 0.0


def _list(name: str, value: object) -> Sequence[object]:
    if isinstance(value, (list, tuple)):
        return value
    raise ProfileError(f"{name} must be a list, not {type(value).__name__}")


def _names(value: object) -> tuple[str, ...]:
    names = [name for name in _list("layers", value) if isinstance(name, str) and name]
    if not names or len(names) != len(_list("layers", value)):
        raise ProfileError(f"layers must be names, at least one, got {short(value)}")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ProfileError(f"layers must be named once each; doubled: {short(doubled)}")
    return tuple(names)


def _integers(name: str, value: object) -> tuple[int, ...]:
    """Check steps or depths, which both count from 1."""
    integers = []
    for number in _list(name, value):
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= LARGEST_INTEGER:
            raise ProfileError(f"{name} must be whole numbers from 1 to {LARGEST_INTEGER}, got {short(number)}")
        integers.append(number)
    return tuple(integers)


def _table(name: str, value: object, rows: int, columns: int) -> tuple[tuple[float, ...], ...]:
    table = tuple(tuple(_rate(name, number) for number in _list(name, row)) for row in _list(name, value))
    if len(table) != rows or any(len(row) != columns for row in table):
        widths = sorted({len(row) for row in table})
        raise ProfileError(
            f"{name} must be {rows} x {columns} (steps x layers), got {len(table)} rows of {short(widths)}"
        )
    return table


def _rate(name: str, number: object) -> float:
    if isinstance(number, (int, float)) and not isinstance(number, bool):
        try:
            rate = float(number)
        except OverflowError:
            rate = math.inf
        if math.isfinite(rate) and rate >= 0:
            return rate
    raise ProfileError(f"{name} must be finite numbers of at least 0, got {short(number)}")
