"""MetaLR: one learning rate per layer, learned online, attached to the host's own optimizer."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from layertune.errors import OptimizerError
from layertune.metalr import attached
from layertune.metalr.adapt_calls import AdaptCalls, refuse_streaming_call
from layertune.metalr.correcting.learner import CorrectingLearner
from layertune.metalr.free.learner import FreeLearner
from layertune.metalr.learner import Learner
from layertune.metalr.requirements import check_layers, check_meta_gradient, check_optimizer, refuse_copy
from layertune.metalr.resuming import resumed_settings
from layertune.metalr.sections import Layers
from layertune.metalr.settings import MetaLRSettings
from layertune.rates.attachment import LRMultiplier, require_optimizer
from layertune.rates.profile import LRProfile
from layertune.rates.stand_in import StandIn

__all__ = ["MetaLR"]


class MetaLR(LRMultiplier):
    """Learn one factor on the learning rate of each layer while the host trains (MetaLR, algorithm 1).

    With u_j the optimizer's update direction per unit of learning rate and g_j the gradient of the meta loss::

        look ahead      theta^_j = theta_j - alpha_j u_j                             (eq. 2)
        learn           h_j = dL_meta(theta^)/dalpha_j = -<g_j, u_j>
                        alpha'_j = max(alpha_j - eta h_j, 1e-6)                       (eq. 3)
        step            theta'_j = theta_j - alpha'_j u_j                             (eq. 4)

    u does not depend on alpha, so h is exact with first-order passes only. MetaLR works by hooks on the optimizer's
    ``step``. The schedule keeps ``lr``. What is learned is a factor on it, ``group["meta_scale"]``, which is saved with
    the optimizer's own ``state_dict``, together with all else that a resumed run needs.

    Groups with the same ``"layer"`` share a factor. A group without that key goes by its ``"name"``, or is a layer of
    its own.

    The default rule, ``"free"``, needs no learning rate. The optimizer's ``lr`` gives the ratio between param groups,
    and the schedule gives how rates fall; pass ``lr=1.0`` where you have none in mind. The first step is as long as
    3e-4 of the weights. From then on one factor for all layers is learned: it grows as long as the loss falls along the
    movement of the last ten steps or so, and it shrinks when the loss begins to rise along it. ``docs/rule.md`` says
    more.

    The other rules learn a factor for each layer, start from the optimizer's ``lr``, and correct each step along its
    line as the equations above say.

    Args:
        optimizer: The host's optimizer. Its step must be linear in ``lr`` (SGD, Adam, AdamW, Lion, ...).
        hyper_lr: The step size eta of the learning rates, >= 0. 0 changes nothing, bit for bit. Default: 0.05 for the
            rules ``"free"`` and ``"cosine"``, and 0.1 for ``"joint"`` and ``"proportional"``; the rule ``"additive"``
            has no default.
        rule: ``"free"`` (default), ``"joint"``, ``"cosine"`` (alpha' = alpha exp(eta cos(-g, -u))), ``"proportional"``
            (alpha' = alpha (1 - eta h)) or ``"additive"`` (eq. 3). ``"joint"``, the default of version 0.1, is
            ``"cosine"``, and five times as fast by the cosine of all layers together; from a hyper_lr of 0.12 up
            ``max_change`` limits it.
        start: ``"weights"`` (default) or ``"lr"``: what the first step of the rule ``"free"`` follows. With ``"lr"`` it
            is the optimizer's own step, and a rising schedule raises the rate.
        min_lr: The smallest learned rate. Default: none for the rule ``"free"``, and the paper's 1e-6 for the others.
        max_lr: The largest learned rate. Default: no limit.
        max_change: The largest factor, up or down, of one adaptation; ``float("inf")`` for eq. 3 without a limit.
            Default: 2.
        every: Learn at each ``every``-th step, at a cost of 1 + 1/every passes a step. Default: 1.
        streaming: Take the next training batch's gradient as the meta gradient, at no extra pass; then attaching is all
            that a training loop needs. Default: ``False``.
        settings: All settings above in one record, in place of single ones.
        layers: The parameters of each layer, as ``LayerMap.parameters_of(model)`` gives them, for an optimizer whose
            groups must stay as they are. Default: the layers that the groups name.

    Attributes:
        settings: All settings, in one record.

    Raises:
        OptimizerError: A setting is out of range, the optimizer has a state of other layers or a single layer (with
            other rules than ``"free"``), or its step is not linear.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from layertune import map_layers, meta_pass, param_groups
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> groups = param_groups(net, map_layers(net, torch.empty(2, 4)), lr=0.01)
        >>> optimizer = torch.optim.SGD(groups, lr=0.01)
        >>> metalr = MetaLR(optimizer)
        >>> x, y, x_meta, y_meta = torch.randn(8, 4), torch.randn(8, 1), torch.randn(8, 4), torch.randn(8, 1)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     nn.functional.mse_loss(net(x), y).backward()
        ...     optimizer.step()
        ...     if metalr.due:
        ...         optimizer.zero_grad()
        ...         with meta_pass(net):
        ...             nn.functional.mse_loss(net(x_meta), y_meta).backward()
        ...         metalr.adapt()
        >>> sorted(metalr.lrs)
        ['0', '2']
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        hyper_lr: float | None = None,
        rule: str | None = None,
        start: str | None = None,
        min_lr: float | None = None,
        max_lr: float | None = None,
        max_change: float | None = None,
        every: int | None = None,
        streaming: bool | None = None,
        settings: MetaLRSettings | None = None,
        layers: Layers | None = None,
    ) -> None:
        single = {"hyper_lr": hyper_lr, "rule": rule, "start": start, "min_lr": min_lr, "max_lr": max_lr}
        single |= {"max_change": max_change, "every": every, "streaming": streaming}
        self.settings = MetaLRSettings.one_of(settings, **single)
        require_optimizer(optimizer)
        self._asked = self.settings
        self._layers = layers
        check_optimizer(optimizer)
        self._resume(optimizer)
        self._learner = self._learner_of(optimizer)
        self._calls = AdaptCalls()
        super().__init__(optimizer)
        self._hooks += [
            optimizer.register_state_dict_pre_hook(lambda _: self._learner.write_state()),
            optimizer.register_load_state_dict_post_hook(lambda _: self._read_state()),
        ]
        attached.attach(optimizer)
        vars(optimizer)["__deepcopy__"] = refuse_copy

    @property
    def hyper_lr(self) -> float:
        """The step size of the learning rates."""
        return self.settings.eta

    @property
    def streaming(self) -> bool:
        """Whether the gradient of the next training batch is the meta gradient."""
        return self.settings.streaming

    @property
    def steps(self) -> int:
        """Number of optimizer steps since the start of the run, resumed ones included."""
        return self._learner.steps

    @property
    def due(self) -> bool:
        """Whether a step waits for a meta pass and ``adapt()``."""
        return self._learner.due

    @property
    def lrs(self) -> dict[str, float]:
        """The present learning rate of each layer: the schedule's times the learned factor."""
        self._learner.skipped.warn(self.steps)
        groups, sections = self.optimizer.param_groups, self._learner.sections
        scales = sections.read_scales(groups).tolist()
        rates = [float(groups[group]["lr"]) for group in sections.leading_groups(groups)]
        return {name: rate * scale for name, rate, scale in zip(sections.names, rates, scales, strict=True)}

    @property
    def skipped(self) -> int:
        """Number of adaptations that were left out because the meta gradient was not finite."""
        return self._learner.skipped.count

    @property
    def history(self) -> list[tuple[int, dict[str, float]]]:
        """The learned rates over time: pairs of the step and the rate of each layer. Long runs are thinned evenly."""
        self._learner.skipped.warn(self.steps)
        return self._learner.history.lrs_over_time(self._learner.sections.names)

    def profile(self) -> LRProfile:
        """Return what was learned over time, to save, plot, or replay without meta passes.

        Raises:
            OptimizerError: Nothing was learned yet. The message says why.
        """
        self._learner.skipped.warn(self.steps)
        if not self._learner.history.records:
            self._calls.explain_missing_profile(self.settings, self.steps)
        sections = self._learner.sections
        return self._learner.history.profile(sections.names, sections.depths(self.optimizer.param_groups))

    @torch.no_grad()
    def adapt(self, grad_scale: float | Tensor = 1.0) -> None:
        """Learn from the meta gradient in ``.grad``, correct the last step, and clear the gradients.

        Call it after ``optimizer.step()``, ``optimizer.zero_grad()`` and the backward pass of the meta loss. With
        ``streaming=True`` MetaLR does this by itself, and a call is refused. If no step waits (``due`` is false, after
        a step that AMP skipped, in an accumulating iteration, or between the steps of ``every``), nothing happens and
        the gradients stay. A loop in which that occurs asks first, which saves the meta pass and the accumulated
        gradients::

            scaler.step(optimizer)
            scaler.update()
            if metalr.due:
                optimizer.zero_grad()
                with meta_pass(model):
                    with torch.autocast("cuda"):
                        loss = criterion(model(x_meta), y_meta)
                    scaler.scale(loss).backward()
                metalr.adapt(scaler.get_scale())

        Args:
            grad_scale: The factor that the meta loss was multiplied by: ``scaler.get_scale()`` under a ``GradScaler``.

        Raises:
            OptimizerError: ``streaming`` is set, no step was ever made, or no parameter has a gradient. Nothing is
                changed then.
        """
        if self.streaming:
            refuse_streaming_call()
        if not self.due:
            if not self.steps:
                raise OptimizerError(
                    "adapt() found no step to learn from; call optimizer.step() first, then backward on the meta loss; "
                    "where AMP or accumulation may leave out the first step, ask `if metalr.due:` before the meta pass"
                )
            return
        check_meta_gradient(self.optimizer)
        self._calls.called = True
        self._learner.learn(self.settings, grad_scale)
        self.optimizer.zero_grad()

    def detach(self) -> None:
        """Remove the hooks and all that MetaLR has written into the optimizer's param groups."""
        super().detach()
        attached.detach(self.optimizer)
        vars(self.optimizer).pop("__deepcopy__", None)
        self._learner.remove_state()

    def _resume(self, optimizer: Optimizer) -> None:
        """Go on by the older rule that the optimizer's state was learned by, and else by the one that was asked for."""
        if self.settings.rule == self._asked.rule:
            self._asked = self.settings  # a host may have replaced them
        self.settings = resumed_settings(self._asked, optimizer.param_groups[0])

    def _learner_of(self, optimizer: Optimizer) -> Learner:
        if self.settings.rule == "free":
            return FreeLearner(optimizer, self._layers)
        learner = CorrectingLearner(optimizer, self._layers)
        check_layers(learner.sections.names)
        return learner

    def _read_state(self) -> None:
        self._resume(self.optimizer)
        if isinstance(self._learner, FreeLearner) != (self.settings.rule == "free"):
            self._learner = self._learner_of(self.optimizer)
        self._learner.read_state()

    @torch.no_grad()
    def _prepare_step(self, stand_in: StandIn) -> None:
        attached.require_latest(self.optimizer)
        _ = self._learner.sections  # parameters that were moved are noticed before anything is measured
        if self.streaming and self.due:
            # A GradScaler leaves these two on an optimizer whose fused step unscales by itself.
            scale, found_inf = (getattr(self.optimizer, name, None) for name in ("grad_scale", "found_inf"))
            self._learner.learn(self.settings, 1.0 if scale is None else scale, found_inf)
        elif self.due:
            self._calls.lose_step(self.settings)
        self._learner.start_step(stand_in, self.settings)

    @torch.no_grad()
    def _finish_step(self) -> None:
        self._learner.finish_step(self.settings)
