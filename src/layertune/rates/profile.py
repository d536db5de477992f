"""LRProfile: what MetaLR learned over time; saved, loaded, summed up, replayed in any host."""

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

LARGEST_INTEGER = 2**63 - 1  # what a file holds


class ProfileSummary(NamedTuple):
    """How learned rates are spread over depth, in decades (1.0 = a factor of ten); see ``LRProfile.summary``.

    Attributes:
        domain_specificity: how far the shallow third lies above the middle third.
        task_specificity: how far the deep third, head included, lies above the middle third.
        u_shape: the smaller of both; positive where the rates form a U.
    """

    domain_specificity: float
    task_specificity: float
    u_shape: float


@dataclass(frozen=True)
class LRProfile:
    """Learning rates that were learned, layer by layer and moment by moment.

    Lists are accepted and kept as tuples. With T records and L layers:

    Attributes:
        layers: names of the layers in order of depth, unique; length L.
        depths: depth of each layer, 1 the shallowest; layers may share one; length L.
        steps: optimizer steps done at each record, counted from 1, ascending; length T.
        scales: learned factors on the schedule's learning rate, (T, L); row t was in force in step ``steps[t]``
            itself (MetaLR corrects the step that it learns from) and until the next record.
        lrs: the learning rates that came of it, alpha_j of MetaLR eq. 3, (T, L).

    Raises:
        ProfileError: lengths that do not fit each other, steps that do not ascend, doubled names, or a number that is
            negative, not finite or no number.

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
        """Write the profile to a file, bit for bit, in one piece.

        Args:
            path: ends in ``.json`` (to read by eye) or ``.safetensors`` (smaller).

        Raises:
            ProfileError: another suffix.
            OSError: the folder is missing or cannot be written.
        """
        write_fields(Path(path), {field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> LRProfile:
        """Read a profile that ``save`` wrote; nothing in the file is ever executed.

        Raises:
            ProfileError: there is no such file, or it is damaged or no profile; the message names the file and the
                fault.
        """
        content = read_fields(Path(path))
        try:
            return cls(**content)
        except ProfileError as error:
            raise ProfileError(f"cannot load the profile {path}: {error}") from None

    def replay(self, optimizer: Optimizer) -> Replay:
        """Use the learned rates on a fresh optimizer, without a meta pass.

        Step t, counted from 1, is made with the factor of the last record at or before t, the one that MetaLR made its
        t-th step with; before the first record with 1, after the last with the last. The factor stands on top of the
        host's schedule, and only for the length of the step. MetaLR thins the records of runs of more than 2048
        adaptations; between two kept records the replay holds the earlier one's factor.

        Args:
            optimizer: its param groups name their layers under ``"layer"``, as ``param_groups`` makes them; several
                groups may name one.

        Returns:
            A handle with ``detach()``, also a context manager. Saved and loaded with the optimizer's ``state_dict``,
            a replay goes on where it stood.

        Raises:
            ProfileError: a layer of the optimizer is not in the profile; the message lists both sides.

        Warns:
            UserWarning: the profile has layers that the optimizer has not; they may be frozen here, or the networks
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
        """The rates of the last quarter of training, by layer: what the papers' figures show over depth.

        The geometric mean of the records after 3/4 of the last step. Rates of 0 have no logarithm and are left out (the
        end of a decay, a frozen layer); a layer with no other is given as 0.

        Raises:
            ProfileError: nothing was recorded.
        """
        if not self.steps:
            raise ProfileError("nothing was recorded yet; train for at least one step of MetaLR")
        rows = [row for step, row in zip(self.steps, self.lrs, strict=True) if 4 * step > 3 * self.steps[-1]]
        return {name: _geometric_mean(rates) for name, rates in zip(self.layers, zip(*rows, strict=True), strict=True)}

    def summary(self) -> ProfileSummary:
        r"""Put the U in numbers: are the ends of the network less transferable than its middle (MetaLR sec. 3.2)?

        With a_j the converged rate of layer j (see ``converged``) and D depths, let l(k) be the mean of log10 a_j over
        the layers of the k-th depth. The shallow and the deep third are floor(D / 3) depths each, the middle is the
        rest, and

            domain_specificity = mean l(shallow) - mean l(middle)
            task_specificity   = mean l(deep)    - mean l(middle)
            u_shape            = min(domain_specificity, task_specificity)

        Logarithms, since rates are learned as factors and range over decades; differences of them, so that the
        schedule, which all layers share, cancels; means by depth, so that a depth of many layers (I2) counts once; the
        minimum, since one raised end is a slope and not a U. The deep third holds the head, with the rate that it was
        started with: ten times the others' is a start of 1.0 / (depths in the deep third) decades. Layers whose rate is
        0 (frozen) are left out.

        Raises:
            ProfileError: nothing was recorded, or fewer than 3 depths have a rate.

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
            raise ProfileError(f"a U takes at least 3 depths with a rate above 0, and this profile has {len(by_depth)}")
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
    """Steps and depths: both count from 1."""
    found = []
    for number in _list(name, value):
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= LARGEST_INTEGER:
            raise ProfileError(f"{name} must be whole numbers from 1 to {LARGEST_INTEGER}, got {short(number)}")
        found.append(number)
    return tuple(found)


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
