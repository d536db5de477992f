"""AlchemyHandler: the three phases of Network Alchemy in MONAI's engines."""

from collections.abc import Collection
from typing import Any

from ignite.engine import Events
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from layertune import Alchemy, AlchemyError, Convergence, GammaPenalty, gammas
from layertune.alchemy.convergence import check_rules
from layertune.alchemy.phases import USUAL
from layertune_monai.handlers.engine import check_not_begun, check_not_wrapped, example_inputs, network_of
from layertune_monai.handlers.report import log_once

__all__ = ["AlchemyHandler"]


class AlchemyHandler:
    """Train in the phases of Network Alchemy; see ``layertune.Alchemy`` for the method.

    The engine, its optimizer and its schedulers stay as they are: all but the norms is frozen from the first iteration
    until the identification ends, and the penalty's gradient is added to the loss's, unscaled, in the steps of the
    maximisation, whose end ends the run. With an ``evaluator`` an epoch of Alchemy ends with each of its runs, or else
    with the engine's own. What is frozen and added stays for a later ``run``, until ``detach()``.

    Phase, progress and what started afresh are saved with the handler:
    ``CheckpointSaver(save_dict={"network": ..., "optimizer": ..., "alchemy": handler, "trainer": ...})``, and
    ``CheckpointLoader`` with the same names, resume exactly. The ``CheckpointSaver`` comes after the
    ``ValidationHandler`` and after this handler.

    Args:
        optimizer: the engine's.
        evaluator: the one that validates, whose metric tells convergence; ``None`` where phases have budgets only.
        metric: its name there; its key metric by default.
        threshold: a kernel whose |gamma| lies below it is redundant; 0.05 if no quantile is given.
        quantile: instead, the share of kernels to start afresh.
        whole_layers: let all kernels of a layer start afresh, which is refused otherwise.
        identification: when it ends, as MONAI's key metrics ask ``Convergence(mode="max", ...)``; ``None`` judges the
            gammas as they are when the run starts.
        modification: whether redundant kernels start afresh.
        maximisation: when it ends, and the run with it; ``None`` for as long as the engine trains.
        alpha: weight of the gammas' mean in the penalty.
        beta: weight of their standard deviation.
        weight: lambda; 0 for no penalty.
        absolute: whether the penalty reads |gamma| in place of gamma.
        biases: whether biases train in the identification too.
        head: names of parameters that train in the identification too.
        seed: of the new kernels.
        network: the one that the optimizer trains; ``engine.network`` by default.

    Attributes:
        alchemy: the phases, from the first iteration on: ``phase``, ``history``, ``redundant``.

    Raises:
        AlchemyError: at once where a phase waits for a plateau and there is no evaluator; in the first iteration for
            settings out of range; after a validation without the metric, or for a modification that is refused.
        ModelError: in ``attach`` for an engine that has begun; in the first iteration for a network that has no
            gammas, cannot be traced, or is wrapped by DDP without ``find_unused_parameters=True``.

    Example:
        >>> from torch.optim import SGD
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        >>> budget = Convergence(limit=20)
        >>> handler = AlchemyHandler(SGD(net.parameters(), lr=0.1), identification=budget, threshold=0.05)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        evaluator: Any = None,
        metric: str | None = None,
        threshold: float | None = None,
        quantile: float | None = None,
        whole_layers: bool = False,
        identification: Convergence | None = USUAL,
        modification: bool = True,
        maximisation: Convergence | None = None,
        alpha: float = 0.1,
        beta: float = 1.0,
        weight: float = 1e-4,
        absolute: bool = False,
        biases: bool = False,
        head: Collection[str] = (),
        seed: int = 0,
        network: nn.Module | None = None,
    ) -> None:
        check_rules(identification=identification, maximisation=maximisation)
        if evaluator is None and any(rule and rule.patience for rule in (identification, maximisation)):
            raise AlchemyError(
                "a phase with a patience ends on a plateau of a metric: give AlchemyHandler(evaluator=...), or the "
                "phases budgets, as identification=Convergence(limit=20)"
            )
        self.optimizer, self.evaluator, self.metric, self.network = optimizer, evaluator, metric, network
        self.settings: dict[str, Any] = {
            "threshold": threshold,
            "quantile": quantile,
            "whole_layers": whole_layers,
            "identification": identification,
            "modification": modification,
            "maximisation": maximisation,
            "biases": biases,
            "head": head,
            "seed": seed,
        }
        self.penalty: dict[str, Any] = {"alpha": alpha, "beta": beta, "weight": weight, "absolute": absolute}
        self.alchemy: Alchemy | None = None
        self._hook: RemovableHandle | None = None
        self._state: dict[str, Any] = {}

    @property
    def maximises(self) -> bool:
        """Whether the maximisation has begun: from then on the rates of all layers can be learned."""
        return self.state_dict().get("phase") in ("maximisation", "finished")

    def attach(self, engine: Any) -> None:
        """Attach to an engine that has not begun.

        Raises:
            ModelError: the engine has begun.
        """
        check_not_begun(engine, self)
        if engine.has_event_handler(self._begin, Events.ITERATION_STARTED):
            return
        engine.add_event_handler(Events.ITERATION_STARTED, self._begin)
        if self.evaluator is None:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        else:
            self.evaluator.add_event_handler(Events.COMPLETED, lambda _: self._end_epoch(engine))

    def state_dict(self) -> dict[str, Any]:
        """Phase, progress and what started afresh; empty before the first iteration."""
        return self.alchemy.state_dict() if self.alchemy else self._state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state that was saved, with the network's and the optimizer's of that moment."""
        self._state = state_dict
        if self.alchemy is not None and state_dict:
            self.alchemy.load_state_dict(state_dict)

    def detach(self) -> None:
        """Leave network and optimizer as they were: nothing frozen, no hook. A later run builds the phases again."""
        self._state = self.state_dict()
        if self._hook is not None:
            self._hook.remove()
        if self.alchemy is not None:
            self.alchemy.detach()
        self.alchemy, self._hook = None, None

    def _begin(self, engine: Any) -> None:
        """In the first iteration, when everything is loaded and where it trains, and a batch is at hand."""
        if self.alchemy is not None:
            return
        network = network_of(engine, self)
        if self.settings["identification"] is not None:
            check_not_wrapped(network)
        gammas(network)  # one error, and no warning of the penalty's
        penalty = GammaPenalty(network, **self.penalty)
        inputs = example_inputs(engine, network)
        alchemy = Alchemy(network, self.optimizer, *inputs, penalty=penalty, **self.settings)
        try:
            if self._state:
                alchemy.load_state_dict(self._state)
            if alchemy.phase == "modification":  # there was no identification, or it was refused
                alchemy.modify()
        except BaseException:  # an interrupt too: nothing stays frozen or attached
            alchemy.detach()
            raise
        self.alchemy = alchemy
        self._hook = self.optimizer.register_step_pre_hook(lambda *_: alchemy.add_gradient())

    def _end_epoch(self, engine: Any) -> None:
        if self.alchemy is None or not self.alchemy.update(self._value()):  # not begun: a validation before training
            return
        redundant = self.alchemy.redundant
        afresh = f"; {redundant.count} of {redundant.total} kernels started afresh" if redundant else ""
        log_once(f"Network Alchemy: {self.alchemy.phase}{afresh}")
        if self.alchemy.phase == "finished":
            engine.terminate()

    def _value(self) -> float | None:
        if self.evaluator is None:
            return None
        state = self.evaluator.state
        name = self.metric or state.key_metric_name
        if name not in state.metrics:
            known = ", ".join(sorted(state.metrics)) or "none"
            raise AlchemyError(
                f"AlchemyHandler(metric={name!r}) names no metric of the {type(self.evaluator).__name__}, which has: "
                f"{known}; give the evaluator key_val_metric={{name: ...}}"
            )
        return float(state.metrics[name])
