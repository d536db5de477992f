"""Replay of learned rates on a fresh optimizer, in any host and without a meta pass."""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch.optim import Optimizer

from layertune.errors import ProfileError
from layertune.layers.names import common_path
from layertune.rates.attachment import group_layer_names, multiply_lrs, require_single_multiplier, restore_lrs

if TYPE_CHECKING:
    from types import TracebackType

    from layertune.rates.profile import LRProfile

__all__ = ["Replay", "match_layers"]

STEP = "replay_step"


class Replay:
    """Multiplies each group's ``lr`` by a profile's factor for the length of each step.

    Made by ``LRProfile.replay``. The host's schedule keeps ``lr``: between two steps it reads as without a replay. The
    number of steps done stands in each group under ``"replay_step"``, so that it is saved and restored with the
    optimizer's own ``state_dict``; ``detach`` takes it away again. As a context manager it detaches on leaving.
    """

    multiplies_lrs: ClassVar[bool] = True

    def __init__(self, profile: LRProfile, optimizer: Optimizer) -> None:
        require_single_multiplier(optimizer)
        self.profile = profile
        self.optimizer = optimizer
        self._columns = match_layers(profile.layers, group_layer_names(optimizer.param_groups))
        _warn_of_unused(profile.layers, self._columns)
        self._before: tuple[list[dict[str, Any]], list[Any]] | None = None
        for group in optimizer.param_groups:
            group.setdefault(STEP, 0)
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    @property
    def step(self) -> int:
        """Number of steps replayed so far, those before a restored checkpoint included."""
        return int(self.optimizer.param_groups[0].get(STEP, 0))

    def factors(self, step: int) -> dict[str, float]:
        """The factor of each of the optimizer's layers in a step, counted from 1.

        Before the first record, where nothing was learned yet, every factor is 1.
        """
        record = bisect_right(self.profile.steps, step) - 1
        if record < 0:
            return dict.fromkeys(self._columns, 1.0)
        return {layer: self.profile.scales[record][column] for layer, column in self._columns.items()}

    def detach(self) -> None:
        """Take the hooks and the counter away; the optimizer is as it was before, also after a step that failed."""
        for hook in self._hooks:
            hook.remove()
        self._restore()
        for group in self.optimizer.param_groups:
            group.pop(STEP, None)

    def __enter__(self) -> Replay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del args, kwargs
        self._restore()
        names = group_layer_names(optimizer.param_groups)
        if not self._columns.keys() >= set(names):
            self._columns = match_layers(self.profile.layers, names)
        factors = self.factors(self.step + 1)
        groups = list(optimizer.param_groups)
        self._before = groups, multiply_lrs(groups, [factors[name] for name in names])

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del args, kwargs
        if self._before is None:  # the outer of two calls, where a subclass's step calls its parent's
            return
        self._restore()
        done = self.step + 1
        for group in optimizer.param_groups:
            group[STEP] = done

    def _restore(self) -> None:
        if self._before is not None:
            restore_lrs(*self._before)
            self._before = None


def match_layers(recorded: Sequence[str], wanted: Iterable[str]) -> dict[str, int]:
    """Find each of an optimizer's layers among a profile's, by name.

    Hosts wrap networks in modules of their own (``network.``, ``model.``), which stand in front of all names of one
    side. Names are therefore compared as they are, then with as few leading modules as possible taken off, from all
    names of a side alike.

    Args:
        recorded: the profile's layers.
        wanted: the optimizer's layers; doubled ones (split by weight decay) count once. Layers of the profile that are
            not among them (frozen ones) are passed over.

    Returns:
        For each wanted layer its index in ``recorded``.

    Raises:
        ProfileError: some layer has no partner; the message lists both sides.

    Example:
        >>> match_layers(["model.stem", "model.head"], ["network.model.head", "network.model.stem"])
        {'network.model.head': 1, 'network.model.stem': 0}
    """
    wanted = list(dict.fromkeys(wanted))
    cuts = [(i, j) for i in range(_shared_modules(recorded) + 1) for j in range(_shared_modules(wanted) + 1)]
    for cut_recorded, cut_wanted in sorted(cuts, key=sum):
        index = {_without(name, cut_recorded): column for column, name in enumerate(recorded)}
        if all(_without(name, cut_wanted) in index for name in wanted):
            return {name: index[_without(name, cut_wanted)] for name in wanted}
    missing = [name for name in wanted if name not in recorded]
    raise ProfileError(
        f"the profile was learned on another network: {len(missing)} of the optimizer's {len(wanted)} layers are not "
        f"in it\n  optimizer: {', '.join(wanted)}\n  profile:   {', '.join(recorded)}\n"
        "map both networks with the same granularity, or learn a profile on this network"
    )


def _warn_of_unused(recorded: Sequence[str], columns: dict[str, int]) -> None:
    unused = [name for column, name in enumerate(recorded) if column not in columns.values()]
    if unused:
        warnings.warn(
            f"the profile's layers {', '.join(unused)} are not in the optimizer; this is right where they are frozen, "
            "and else the profile was learned on another network",
            stacklevel=4,
        )


def _shared_modules(names: Sequence[str]) -> int:
    """How many leading modules all names have in common; the last part of a name is never one of them."""
    shared = common_path(name.rpartition(".")[0] for name in names)
    return len(shared.split(".")) if shared else 0


def _without(name: str, modules: int) -> str:
    return ".".join(name.split(".")[modules:])
