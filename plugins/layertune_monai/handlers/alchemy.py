"""AlchemyHandler: the three phases of Network Alchemy in MONAI's engines."""

import logging
from dataclasses import replace
from typing import Any, Unpack

from ignite.engine import Events
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from layertune import AlchemyError, Convergence
from layertune.alchemy.convergence import DEFAULT_IDENTIFICATION
from layertune.hosts.alchemy_session import AlchemyHolder, AlchemySession
from layertune.hosts.alchemy_settings import AlchemyOptions, AlchemySettings
from layertune_monai.handlers.engine import attach_once, check_not_wrapped, example_inputs, network_of
from layertune_monai.handlers.report import log_once

__all__ = ["AlchemyHandler"]


class AlchemyHandler(AlchemyHolder):
    """Train in the phases of Network Alchemy; see ``layertune.Alchemy`` for the method.

    The engine, its optimizer and its schedulers stay as they are. From the first iteration until the identification
    ends, everything but the norms is frozen; in the steps of the maximisation the penalty's gradient is added to that
    of the loss, unscaled. With an ``evaluator`` the phases count its runs, or else the engine's epochs. The end of the
    maximisation ends the run. Otherwise freezing and penalty stay for a later ``run``, until ``detach()``.

    Phase, progress and redundant kernels are saved with the handler:
    ``CheckpointSaver(save_dict={"network": ..., "optimizer": ..., "alchemy": handler, "trainer": ...})``, and
    ``CheckpointLoader`` with the same names, resume exactly. Put the ``CheckpointSaver`` after the
    ``ValidationHandler`` and after this handler.

    Args:
        optimizer: The optimizer that the engine steps, over all parameters of its network.
        evaluator: The engine that validates, and has the metric that shows convergence. Phases with a fixed number of
            epochs need none.
        metric: Name of the metric in the evaluator. Default: its key metric.
        identification: When the identification ends; for a metric that falls, as a loss,
            ``Convergence(mode="min", ...)``. ``None`` leaves it out: the gammas are judged as they are when the run
            starts. Default: after 5 validations without a higher metric, since MONAI's key metrics grow, or after 100
            validations.
        network: The network that the optimizer trains. Default: ``engine.network``.
        **settings: ``threshold``, ``quantile``, ``whole_layers``, ``modification``, ``maximisation``, ``biases``,
            ``head`` and ``seed`` of ``layertune.Alchemy``, and ``alpha``, ``beta``, ``weight`` and ``absolute`` of
            ``layertune.GammaPenalty``, with the defaults that these classes have.

    Attributes:
        alchemy: The phases, from the first iteration on: ``phase``, ``history``, ``redundant``.

    Raises:
        AlchemyError: At once, for a setting out of range, or if a phase waits for a plateau and there is no evaluator.
            In the first iteration, beside a ``GammaPenaltyHandler``, whose penalty would count twice. After a
            validation, for a metric that is missing, or a modification that is refused.
        ModelError: In ``attach``, for an engine that has begun. In the first iteration, for a network that has no
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
        identification: Convergence | None = DEFAULT_IDENTIFICATION,
        network: nn.Module | None = None,
        **settings: Unpack[AlchemyOptions],
    ) -> None:
        if identification is DEFAULT_IDENTIFICATION and evaluator is not None:
            identification = replace(
                DEFAULT_IDENTIFICATION, mode="max"
            )  # a key metric is a score in MONAI: the highest is the best
        record = AlchemySettings.given(identification=identification, **settings)
        record.require_metric(evaluator is not None, "AlchemyHandler(evaluator=...) the engine that validates")
        self._session = AlchemySession(record, owner=type(self).__name__)
        self.optimizer, self.evaluator, self.metric, self.network = optimizer, evaluator, metric, network
        self._hook: RemovableHandle | None = None

    def attach(self, engine: Any) -> None:
        """Attach to an engine that has not begun.

        Raises:
            ModelError: The engine has begun.
        """
        events = {Events.ITERATION_STARTED: self._begin, Events.COMPLETED: self._finish}
        if self.evaluator is None:
            events[Events.EPOCH_COMPLETED] = self._end_epoch
        if attach_once(engine, self, events) and self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, lambda _: self._end_epoch(engine))

    def detach(self) -> None:
        """Unfreeze the network and add no penalty any more. A later run builds the phases again."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = None
        self._session.end()

    def _begin(self, engine: Any) -> None:
        """Start in the first iteration: everything is loaded and on its device, and a batch is at hand."""
        if self._session.running:
            return
        network = network_of(engine, self)
        if self.settings.identification is not None:
            check_not_wrapped(network)
        self._session.begin(network, self.optimizer, *example_inputs(engine, network))
        try:
            self._session.modify_if_due()
        except BaseException:  # an interrupt too: nothing stays attached
            self._session.end()
            raise
        self._hook = self.optimizer.register_step_pre_hook(lambda *_: self._session.add_gradient())

    def _end_epoch(self, engine: Any) -> None:
        if not self._session.running:  # a validation before training
            return
        if self._session.end_epoch(self._value()):
            log_once(self._session.message)
            if self._session.phase == "finished":
                engine.terminate()

    def _finish(self, _: Any) -> None:
        if self._session.unfinished:
            log_once(self._session.unfinished, logging.WARNING)

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
