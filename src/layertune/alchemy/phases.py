"""Network Alchemy: identification, modification, maximisation, as a state machine that any loop can turn."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from layertune.alchemy.convergence import USUAL, Convergence, Progress, check_rules
from layertune.alchemy.kernels import pair_kernels
from layertune.alchemy.norms import affine_norms, gamma_of, gammas, norm_only
from layertune.alchemy.penalty import GammaPenalty
from layertune.alchemy.redundancy import THRESHOLD, RedundantKernels, redundant_kernels
from layertune.alchemy.reinitialize import reinitialize
from layertune.errors import AlchemyError, OptimizerError
from layertune.layers.names import unwrap
from layertune.layers.trace import trace
from layertune.restoring import Frozen

__all__ = ["Alchemy", "Phase"]

Phase = Literal["identification", "modification", "maximisation", "finished"]


class Alchemy:
    """The three phases of Network Alchemy (sec. 3.2.2) around a training loop that stays the user's.

    *Identification*: all but the norms is frozen (``norm_only``) until the metric has converged. *Modification*, a
    moment: redundant kernels start afresh, all else keeps what it learned. *Maximisation*: the whole network trains,
    with ``penalty()`` in its loss, until the metric has converged again. An epoch is whatever lies between two calls
    of ``update``.

    The network is frozen from the moment of construction; ``detach()``, or the end of a ``with`` block, unfreezes it.
    A schedule of the learning rate is the loop's own: ``update`` says when a phase has changed.

    Args:
        model: any network, also wrapped; see ``norm_only`` for DDP.
        optimizer: of all its parameters; one serves all phases.
        *example_inputs: what its forward takes, for a trace; nothing is computed.
        threshold: a kernel whose |gamma| lies below it is redundant; 0.05 if no quantile is given.
        quantile: instead, the share of kernels to start afresh.
        whole_layers: let all kernels of a layer start afresh, which is refused otherwise.
        identification: when it ends. ``None`` leaves it out: the gammas are judged as they are, by ``modify()``.
        modification: whether redundant kernels start afresh; without it the phase passes.
        maximisation: when it ends; ``None`` for never: the loop knows how long it trains.
        penalty: added to the loss in the maximisation; by default ``GammaPenalty(model)``, and with a ``weight`` of 0
            none.
        biases: whether biases train in the identification too.
        head: names of parameters that train in the identification too.
        seed: of the new kernels.

    Attributes:
        phase: the phase that the next epoch trains; ``"modification"`` where ``modify()`` has to be called first.
        progress: epochs of this phase, its best value and how long ago that was.
        history: phase and metric of each epoch.
        identified: the gammas at the end of the identification.
        redundant: the kernels that started afresh.

    Raises:
        ModelError: the network has no norm with a gamma, or refuses the example input.
        AlchemyError: a setting is out of range.
        OptimizerError: the optimizer holds no gamma of the network: it is another network's, or trains its head alone.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        >>> alchemy = Alchemy(net, optimizer, torch.empty(2, 1, 8, 8), identification=Convergence(limit=2))
        >>> for epoch in range(3):
        ...     optimizer.zero_grad()
        ...     loss = net(torch.randn(8, 1, 8, 8)).square().mean() + alchemy.penalty()
        ...     loss.backward()
        ...     optimizer.step()
        ...     print(alchemy.phase, alchemy.update(loss.item()))
        identification False
        identification True
        maximisation False
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *example_inputs: Any,
        threshold: float | None = None,
        quantile: float | None = None,
        whole_layers: bool = False,
        identification: Convergence | None = USUAL,
        modification: bool = True,
        maximisation: Convergence | None = None,
        penalty: GammaPenalty | None = None,
        biases: bool = False,
        head: Collection[str] = (),
        seed: int = 0,
    ) -> None:
        check_rules(identification=identification, maximisation=maximisation)
        self.optimizer, self.whole_layers, self.seed = optimizer, whole_layers, seed
        self.threshold = THRESHOLD if threshold is None and quantile is None else threshold
        self.quantile = quantile
        self.phase: Phase = "modification" if identification is None else "identification"
        self.progress = Progress()
        self.history: list[tuple[Phase, float | None]] = []
        self.identified: dict[str, Tensor] | None = None
        self.redundant: RedundantKernels | None = None
        self._model, self._modification = model, modification
        self._rules = {"identification": identification, "maximisation": maximisation}
        self._train_also: dict[str, Any] = {"biases": biases, "head": head}
        self._penalty = GammaPenalty(model) if penalty is None else penalty
        self._trace = trace(model, *example_inputs)
        self._find(whole_layers=True)  # what would be refused after hours of training is refused now
        _check_held(model, optimizer)
        self._frozen: Frozen | None = None
        self._freeze()

    def penalty(self) -> Tensor:
        """What to add to the loss: lambda R in the maximisation (eq. 3.2), a plain 0 in the other phases."""
        return self._penalty() if self.phase == "maximisation" else torch.zeros(())

    def add_gradient(self, *, scale: float | Tensor | None = None) -> None:
        """Instead of ``penalty()``, where a host owns the backward pass; see ``GammaPenalty.add_gradient``."""
        if self.phase == "maximisation":
            self._penalty.add_gradient(self.optimizer, scale=scale)

    def update(self, metric: float | None = None) -> bool:
        """End an epoch; call it once per epoch, on all ranks with one value.

        Args:
            metric: the validation metric, as the phase's ``Convergence`` reads it; a phase with a budget needs none.

        Returns:
            Whether another phase begins.

        Raises:
            AlchemyError: a metric is missing, the modification was refused, or still waits for ``modify()``.
        """
        if self.phase == "modification":
            raise AlchemyError("the modification is still to be done: call modify() before training goes on")
        if self.phase == "finished":
            return False
        rule = self._rules[self.phase]
        if rule is None:
            self.progress = Progress(self.progress.epochs + 1)
        else:
            self.progress = rule.after(self.progress, metric)
        self.history.append((self.phase, None if metric is None else float(metric)))
        if rule is None or not rule.reached(self.progress):
            return False
        if self.phase == "maximisation":
            self._enter("finished")
            return True
        self.identified = gammas(self._model)
        self._enter("modification")
        self.modify()
        return True

    def modify(self) -> None:
        """Do the modification; ``update`` calls it at the end of the identification.

        Raises:
            AlchemyError: it is not its turn; or the threshold takes all kernels of a layer. Then the phase waits: set
                another ``threshold`` or ``whole_layers``, and call it again.
        """
        if self.phase != "modification":
            raise AlchemyError(f"redundant kernels are modified after the identification, not in the {self.phase}")
        if self._modification:
            redundant = self._find(whole_layers=self.whole_layers)
            reinitialize(self._model, redundant, optimizer=self.optimizer, seed=self.seed)
            self.redundant = redundant
        self._enter("maximisation")

    def detach(self) -> None:
        """Unfreeze what the identification froze; a second call does nothing."""
        if self._frozen is not None:
            self._frozen.undo()
        self._frozen = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.detach()

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on beside network and optimizer, in plain types."""
        kept = self.identified or {}
        return {
            "norms": list(gammas(self._model)),
            "phase": self.phase,
            "progress": asdict(self.progress),
            "history": [list(epoch) for epoch in self.history],
            "identified": {name: values.tolist() for name, values in kept.items()},
            "redundant": None if self.redundant is None else self.redundant.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken, with the network's and the optimizer's state of that moment.

        Raises:
            AlchemyError: the state is of another network, or damaged.
        """
        try:
            norms, phase, progress = list(state["norms"]), state["phase"], Progress(**state["progress"])
            history = [(name, value) for name, value in state["history"]]
            identified = {name: torch.tensor(values) for name, values in state["identified"].items()} or None
            stored = state["redundant"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise AlchemyError(f"this is no state of Alchemy.state_dict(): {error!r}") from error
        if phase not in get_args(Phase) or norms != list(gammas(self._model)):
            raise AlchemyError(
                f"this state is of another network: it has {len(norms)} norms and the phase {phase!r}, "
                f"{type(unwrap(self._model)).__name__} has {len(gammas(self._model))} norms; build the same network"
            )
        self.detach()
        self.phase, self.progress, self.history, self.identified = phase, progress, history, identified
        both = pair_kernels(self._model, self._trace)
        self.redundant = None if stored is None else RedundantKernels.from_state(stored, both)
        self._freeze()

    def _enter(self, phase: Phase) -> None:
        self.detach()
        self.phase, self.progress = phase, Progress()

    def _freeze(self) -> None:
        if self.phase == "identification":
            self._frozen = norm_only(self._model, **self._train_also)

    def _find(self, *, whole_layers: bool) -> RedundantKernels:
        return redundant_kernels(
            self._model,
            threshold=self.threshold,
            quantile=self.quantile,
            whole_layers=whole_layers,
            found=self._trace,
        )


def _check_held(model: nn.Module, optimizer: Optimizer) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(gamma_of(norm)) in held for norm in affine_norms(model).values()):
        raise OptimizerError(
            "this optimizer holds no gamma of the network, so nothing would be identified; build it from "
            "network.parameters(), after the network is complete"
        )
