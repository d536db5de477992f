"""Replay of learned rates on a fresh optimizer, in any host and without a meta pass."""

import warnings
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from torch.optim import Optimizer

from layertune.errors import ProfileError
from layertune.layers.names import common_path
from layertune.rates.attachment import LRMultiplier, group_layer_names, require_optimizer
from layertune.rates.stand_in import StandIn

__all__ = ["Replay", "match_layers"]

STEP = "replay_step"


class Replay(LRMultiplier):
    """Multiply each group's ``lr`` by a recorded factor for the length of each step.

    ``LRProfile.replay`` makes a replay. The host's schedule keeps ``lr``: only the step itself is made with other
    rates. The number of steps done is kept in each group under ``"replay_step"``, so that it is saved and restored with
    the optimizer's own ``state_dict``; ``detach`` removes it. As a context manager a replay detaches on leaving.

    Args:
        optimizer: The optimizer to attach to. Its param groups name their layers.
        layers: The recorded layers, L unique names.
        steps: The optimizer step of each record, T ascending numbers counted from 1.
        scales: The factor of each layer at each record, (T, L).

    Raises:
        ProfileError: A layer of the optimizer was not recorded.
        OptimizerError: The optimizer's learning rates are multiplied already.
    """

    def __init__(
        self, optimizer: Optimizer, *, layers: Sequence[str], steps: Sequence[int], scales: Sequence[Sequence[float]]
    ) -> None:
        require_optimizer(optimizer)
        self._layers, self._steps, self._scales = layers, steps, scales
        self._columns = match_layers(layers, group_layer_names(optimizer.param_groups))
        super().__init__(optimizer)
        _warn_of_unused(layers, self._columns)
        for group in optimizer.param_groups:
            group.setdefault(STEP, 0)

    @property
    def step(self) -> int:
        """Number of steps replayed so far, including those before a restored checkpoint."""
        return int(self.optimizer.param_groups[0].get(STEP, 0))

    def factors(self, step: int) -> dict[str, float]:
        """Return the factor of each of the optimizer's layers in a step.

        Before the first record, when nothing was learned yet, every factor is 1.

        Args:
            step: Number of the step, counted from 1.
        """
        record = bisect_right(self._steps, step) - 1
        if record < 0:
            return dict.fromkeys(self._columns, 1.0)
        return {layer: self._scales[record][column] for layer, column in self._columns.items()}

    def detach(self) -> None:
        """Remove the hooks and the counter; the optimizer is as it was before, also after a step that failed."""
        super().detach()
        for group in self.optimizer.param_groups:
            group.pop(STEP, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _prepare_step(self, stand_in: StandIn) -> None:
        names = group_layer_names(self.optimizer.param_groups)
        if not self._columns.keys() >= set(names):
            self._columns = match_layers(self._layers, names)
        factors = self.factors(self.step + 1)
        stand_in.multiply_lrs([factors[name] for name in names])

    def _finish_step(self) -> None:
        done = self.step + 1
        for group in self.optimizer.param_groups:
            group[STEP] = done


def match_layers(recorded: Sequence[str], wanted: Iterable[str]) -> dict[str, int]:
    """Find each of an optimizer's layers among a profile's, by name.

    Hosts wrap networks in modules of their own (``network.``, ``model.``), which precede all names of one side. Names
    are therefore compared as they are, then with as few leading modules as possible removed from all names of a side.

    Args:
        recorded: The profile's layers. Those that are not wanted, for instance frozen ones, are ignored.
        wanted: The optimizer's layers. A layer that comes twice, split by weight decay, counts once.

    Returns:
        For each wanted layer its index in ``recorded``.

    Raises:
        ProfileError: A wanted layer is not in ``recorded``. The message lists both sides.

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
            f"the profile's layers {', '.join(unused)} are not in the optimizer; this is right if they are frozen, "
            "otherwise the profile was learned on another network",
            stacklevel=4,
        )


def _shared_modules(names: Sequence[str]) -> int:
    """Count the leading modules that all names have in common. The last part of a name is not a module."""
    shared = common_path(name.rpartition(".")[0] for name in names)
    return len(shared.split(".")) if shared else 0


def _without(name: str, modules: int) -> str:
    return ".".join(name.split(".")[modules:])
