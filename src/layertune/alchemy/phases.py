"""Network Alchemy's phases as a state machine: identification, modification, maximisation."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from layertune.alchemy.convergence import DEFAULT_IDENTIFICATION, Convergence, Progress, check_rules
from layertune.alchemy.kernels import pair_kernels
from layertune.alchemy.norms import affine_norms, gamma_of, gammas, norm_only
from layertune.alchemy.penalty import GammaPenalty
from layertune.alchemy.redundancy import RedundantKernels, default_threshold, redundant_kernels
from layertune.alchemy.reinitialize import reinitialize
from layertune.errors import AlchemyError, OptimizerError
from layertune.layers.names import unwrap
from layertune.layers.trace import trace
from layertune.restoring import Frozen

__all__ = ["Alchemy", "Phase"]

Phase = Literal["identification", "modification", "maximisation", "finished"]


class Alchemy:
    """Lead a training loop through the three phases of Network Alchemy (sec. 3.2.2).

    1. Identification: all parameters but those of the norms are frozen (``norm_only``) until the metric has converged.
    2. Modification, between two epochs: redundant kernels are initialised anew; all else keeps what it learned.
    3. Maximisation: the whole network trains, with ``penalty()`` added to its loss, until the metric has converged.

    The loop calls ``update`` once per epoch. The network is frozen when the object is made; ``detach()`` or the end of
    a ``with`` block unfreezes it. The loop keeps its own schedule of the learning rate, and may start it anew where
    ``update`` returns that a phase has begun.

    Args:
        model: The network; it may be wrapped. See ``norm_only`` for DDP.
        optimizer: The optimizer of all its parameters; it serves all phases.
        *example_inputs: The arguments of its forward, for a trace; nothing is computed.
        threshold: A kernel is redundant if its |gamma| is below this number, > 0. Default: 0.05 without a quantile.
        quantile: The share of kernels to initialise anew, in (0, 1), in place of a threshold.
        whole_layers: Whether all kernels of a layer may be initialised anew; by default this is an error.
        identification: The rule by which the identification ends. ``None`` skips this phase: ``modify()`` then judges
            the gammas as they are.
        modification: Whether redundant kernels are initialised anew. Without it the maximisation follows at once.
        maximisation: The rule by which the maximisation ends; ``None`` if the loop ends it.
        penalty: The penalty of the maximisation. Default: ``GammaPenalty(model)``; a ``weight`` of 0 adds none.
        biases: Whether biases train in the identification too.
        head: Names of further parameters that train in the identification.
        seed: The seed of the new kernels.

    Attributes:
        phase: The phase of the next epoch; ``"modification"`` if ``modify()`` has to be called first.
        progress: The epochs of this phase, its best value, and the epochs since then.
        history: The phase and the metric of each epoch.
        identified: The gammas at the end of the identification, or ``None`` before.
        redundant: The kernels that were initialised anew, or ``None`` before.

    Raises:
        ModelError: The network has no norm with a gamma, or its forward refuses the example input.
        AlchemyError: A setting is out of range.
        OptimizerError: The optimizer holds no gamma of the network.

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
        identification: Convergence | None = DEFAULT_IDENTIFICATION,
        modification: bool = True,
        maximisation: Convergence | None = None,
        penalty: GammaPenalty | None = None,
        biases: bool = False,
        head: Collection[str] = (),
        seed: int = 0,
    ) -> None:
        check_rules(identification=identification, maximisation=maximisation)
        self.optimizer, self.whole_layers, self.seed = optimizer, whole_layers, seed
        self.threshold = default_threshold(threshold, quantile)
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
        self._find(whole_layers=True)  # a mistake is answered now, not after hours of training
        _check_held(model, optimizer)
        self._frozen: Frozen | None = None
        self._freeze()

    def penalty(self) -> Tensor:
        """Return the term to add to the loss: lambda R in the maximisation (eq. 3.2), 0 in the other phases."""
        return self._penalty() if self.phase == "maximisation" else torch.zeros(())

    def add_gradient(self, *, scale: float | Tensor | None = None) -> None:
        """Add the penalty's gradient, for hosts that own the backward pass; see ``GammaPenalty.add_gradient``."""
        if self.phase == "maximisation":
            self._penalty.add_gradient(self.optimizer, scale=scale)

    def update(self, metric: float | None = None) -> bool:
        """End an epoch. Call it once per epoch, on all ranks with the same value.

        Args:
            metric: The validation metric of the epoch. A phase with a fixed number of epochs needs none.

        Returns:
            Whether another phase begins.

        Raises:
            AlchemyError: The metric is missing, the modification was refused, or ``modify()`` has to be called first.
        """
        if self.phase == "modification":
            raise AlchemyError("the modification has not been done yet; call modify() before training goes on")
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
        """Initialise the redundant kernels anew. ``update`` calls this at the end of the identification.

        Raises:
            AlchemyError: The present phase is another one, or all kernels of a layer are below the threshold. In the
                second case set another ``threshold`` or ``whole_layers`` and call it again.
        """
        if self.phase != "modification":
            raise AlchemyError(f"modify() belongs after the identification, and the phase is the {self.phase}")
        if self._modification:
            redundant = self._find(whole_layers=self.whole_layers)
            reinitialize(self._model, redundant, optimizer=self.optimizer, seed=self.seed)
            self.redundant = redundant
        self._enter("maximisation")

    def detach(self) -> None:
        """Unfreeze the parameters that the identification froze; a second call does nothing."""
        if self._frozen is not None:
            self._frozen.undo()
        self._frozen = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return in plain types what the next epoch depends on beside the network and the optimizer."""
        identified = self.identified or {}
        return {
            "norms": list(gammas(self._model)),
            "phase": self.phase,
            "progress": asdict(self.progress),
            "history": [list(epoch) for epoch in self.history],
            "identified": {name: values.tolist() for name, values in identified.items()},
            "redundant": None if self.redundant is None else self.redundant.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken. Load the network's and the optimizer's state of that moment too.

        Raises:
            AlchemyError: The state belongs to another network, or is damaged.
        """
        try:
            norms, phase, progress = list(state["norms"]), state["phase"], Progress(**state["progress"])
            history = [(name, value) for name, value in state["history"]]
            identified = {name: torch.tensor(values) for name, values in state["identified"].items()} or None
            redundant = state["redundant"]
            if norms == list(gammas(self._model)):
                redundant = self._redundant_of(redundant)
        except AlchemyError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise AlchemyError(f"this is not a state that Alchemy.state_dict() returned: {error!r}") from error
        if phase not in get_args(Phase) or norms != list(gammas(self._model)):
            raise AlchemyError(
                f"this state belongs to another network: it has {len(norms)} norms and the phase {phase!r}, "
                f"{type(unwrap(self._model)).__name__} has {len(gammas(self._model))} norms; build the same network"
            )
        self.detach()
        self.phase, self.progress, self.history, self.identified = phase, progress, history, identified
        self.redundant = redundant
        self._freeze()

    def _redundant_of(self, stored: Mapping[str, Any] | None) -> RedundantKernels | None:
        norms = pair_kernels(self._model, self._trace)
        return None if stored is None else RedundantKernels.from_state(stored, norms)

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
