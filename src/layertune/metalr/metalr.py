"""MetaLR: one learning rate per layer, learned online, attached to the host's own optimizer."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from layertune.errors import OptimizerError
from layertune.metalr.adaptation import Limits, Skipped, adaptation
from layertune.metalr.displacement import Displacement
from layertune.metalr.history import History
from layertune.metalr.requirements import check_layers, check_meta_gradient, check_optimizer
from layertune.metalr.sections import Layers, Layout
from layertune.metalr.settings import MetaLRSettings
from layertune.rates.attachment import call_before_update, multiply_lrs, restore_lrs
from layertune.rates.profile import LRProfile

__all__ = ["MetaLR"]

KEYS = ("meta_scale", "meta_steps", "meta_step", "meta_history")


class MetaLR:
    """Learn one factor on the learning rate of each layer while the host trains (MetaLR, algorithm 1).

    With u_j the optimizer's update direction per unit of learning rate, g_j the gradient of the meta loss::

        look ahead      theta^_j = theta_j - alpha_j u_j                             (eq. 2)
        learn           h_j = dL_meta(theta^)/dalpha_j = -<g_j, u_j>
                        alpha'_j = max(alpha_j - eta h_j, 1e-6)                       (eq. 3)
        step            theta'_j = theta_j - alpha'_j u_j                             (eq. 4)

    u does not depend on alpha, so h is exact with first-order passes only. Hooks on the optimizer's ``step`` do it:
    the schedule keeps owning ``lr``, and what is learned is a factor on it, ``group["meta_scale"]``, which travels
    with the optimizer's own ``state_dict`` together with all else that resuming needs.

    Groups of one ``"layer"`` share a factor; a group without that key goes by its ``"name"``, or is a layer of its own.

    Args:
        optimizer: the host's optimizer; its step must be linear in ``lr`` (SGD, Adam, AdamW, Lion, ...).
        hyper_lr: The step size eta of the learning rates, >= 0. 0 changes nothing, bit for bit. Default: 0.1, and 0.05
            for the rule ``"cosine"``; the rule ``"additive"`` has no default.
        rule: ``"joint"`` (default), ``"cosine"`` (alpha' = alpha exp(eta cos(-g, -u))), ``"proportional"`` (alpha' =
            alpha (1 - eta h)) or ``"additive"`` (eq. 3). ``"joint"`` is ``"cosine"``, and five times as fast by the
            cosine of all layers together, which makes up for a start that is far too low; from a hyper_lr of 0.12 up
            ``max_change`` limits it.
        min_lr: The smallest learned rate. Default: the paper's 1e-6.
        max_lr: The largest learned rate. Default: no limit.
        max_change: The largest factor, up or down, of one adaptation; ``float("inf")`` for eq. 3 without a limit.
            Default: 2.
        every: Learn at each ``every``-th step, at a cost of 1 + 1/every passes a step. Default: 1.
        streaming: Take the next training batch's gradient as the meta gradient, at no extra pass; then attaching is all
            that a training loop needs. Default: ``False``.
        settings: All settings above in one record, in place of single ones.
        layers: the parameters of each layer, as ``LayerMap.parameters_of(model)`` gives them, for an optimizer whose
            groups must stay as they are; the groups' own layers if none are given.

    Raises:
        OptimizerError: A setting is out of range, the optimizer has a single layer, or its step is not linear.

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

    multiplies_lrs: ClassVar[bool] = True

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        hyper_lr: float | None = None,
        rule: str | None = None,
        min_lr: float | None = None,
        max_lr: float | None = None,
        max_change: float | None = None,
        every: int | None = None,
        streaming: bool | None = None,
        settings: MetaLRSettings | None = None,
        layers: Layers | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.settings = _one_record(
            settings,
            hyper_lr=hyper_lr,
            rule=rule,
            min_lr=min_lr,
            max_lr=max_lr,
            max_change=max_change,
            every=every,
            streaming=streaming,
        )
        self._layers = layers
        self._layout = Layout.of(optimizer, layers)
        check_layers(self._layout.names)
        check_optimizer(optimizer)
        self._displacement = Displacement()
        self._displacement.adopt(optimizer.param_groups)
        self._multiplied: list[Any] | None = None
        self._stepping = False
        self._skipped = Skipped(self._layout.members.device)
        self._history = History.of(optimizer)
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_state_dict_pre_hook(self._before_saving),
            optimizer.register_load_state_dict_post_hook(self._reload),
        ]

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
        """Optimizer steps since the start of the run, resumed ones included."""
        return int(self.optimizer.param_groups[0].get("meta_steps", 0))

    @property
    def due(self) -> bool:
        """Whether a step waits for a meta pass and ``adapt()``."""
        return any("meta_step" in group for group in self.optimizer.param_groups)

    @property
    def lrs(self) -> dict[str, float]:
        """The learning rate of each layer now: the schedule's times what was learned."""
        self._skipped.warn(self.steps)
        layout = self._current_layout()
        scheduled = self._multiplied or [group["lr"] for group in self.optimizer.param_groups]
        scales = layout.read_scales(self.optimizer.param_groups).tolist()
        rates = [float(scheduled[group]) for group in layout.first_groups]
        return {name: rate * scale for name, rate, scale in zip(layout.names, rates, scales, strict=True)}

    @property
    def skipped(self) -> int:
        """Adaptations that a meta gradient that was not finite left out."""
        return self._skipped.count

    @property
    def history(self) -> list[tuple[int, dict[str, float]]]:
        """The learned rates over time: (step, rate of each layer); long runs are thinned evenly."""
        self._skipped.warn(self.steps)
        return self._history.lrs_over_time(self._current_layout().names)

    def profile(self) -> LRProfile:
        """What was learned over time, to save, plot, or replay without meta passes.

        Raises:
            OptimizerError: nothing was learned yet.
        """
        self._skipped.warn(self.steps)
        layout = self._current_layout()
        return self._history.profile(layout.names, layout.depths(self.optimizer.param_groups))

    @torch.no_grad()
    def adapt(self, grad_scale: float | Tensor = 1.0) -> None:
        """Learn from the meta gradient in ``.grad``, correct the last step, and clear the gradients.

        Call it after ``optimizer.step()``, ``optimizer.zero_grad()`` and the backward pass of the meta loss; with
        ``streaming=True`` it is called for you. Where no step waits (``due`` is false: a step that AMP skipped, an
        accumulating iteration, a step between the k-th ones) nothing happens and the gradients stay, so a loop that
        may meet those spares the meta pass, and the gradients that it accumulates, by asking first::

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
            grad_scale: what the meta loss was multiplied by: ``scaler.get_scale()`` under a ``GradScaler``.

        Raises:
            OptimizerError: no step was ever taken, or no parameter has a gradient; nothing is changed then.
        """
        if not self.due:
            if not self.steps:
                raise OptimizerError(
                    "adapt() found no step to learn from; call optimizer.step() first, then backward on the meta loss; "
                    "where AMP or accumulation may leave out the first step, ask `if metalr.due:` before the meta pass"
                )
            return
        check_meta_gradient(self.optimizer)
        self._learn(grad_scale)
        self.optimizer.zero_grad()

    def detach(self) -> None:
        """Leave the optimizer as it was: no hooks, no keys, the schedule's learning rates."""
        self._restore_lrs()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for group in self.optimizer.param_groups:
            for key in KEYS:
                group.pop(key, None)
        self._displacement = Displacement()

    @property
    def _scales_lr(self) -> bool:
        """Whether factors are applied to ``lr`` before a step, or to the displacement after it.

        On the CPU a factor is at hand as a number. Elsewhere reading it would wait for the device, so the displacement
        is scaled; but in half precision that has lost most of its digits, and then waiting is the lesser harm. A group
        that is cut into layers has one ``lr`` for all of them.
        """
        return self._layout.whole and (self._layout.members.device.type == "cpu" or self._layout.half)

    def _current_layout(self) -> Layout:
        if not self._layout.fits(self.optimizer):
            self._layout = Layout.of(self.optimizer, self._layers)
        return self._layout

    def _before_saving(self, _: Optimizer) -> None:
        self._restore_lrs()
        self._history.write(self.optimizer, self._current_layout().names)

    def _reload(self, _: Optimizer) -> None:
        self._multiplied = None  # of a step that raised: the rates that were loaded hold
        self._layout = Layout.of(self.optimizer, self._layers)
        self._history = History.of(self.optimizer)
        self._displacement.adopt(self.optimizer.param_groups)

    def _restore_lrs(self) -> None:
        if self._multiplied is not None:
            restore_lrs(self.optimizer.param_groups, self._multiplied)
            self._multiplied = None

    def _before_step(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return call_before_update(self._prepare, args, kwargs)

    @torch.no_grad()
    def _prepare(self) -> None:
        self._restore_lrs()  # a step that raised has left them multiplied
        groups, layout = self.optimizer.param_groups, self._current_layout()
        if self.streaming and self.due:
            # A GradScaler leaves these two on an optimizer whose fused step unscales by itself.
            scale, found_inf = (getattr(self.optimizer, name, None) for name in ("grad_scale", "found_inf"))
            self._learn(1.0 if scale is None else scale, found_inf)
        self._displacement.forget(groups)
        if self._scales_lr:
            self._multiplied = multiply_lrs(groups, layout.group_scales(groups))
        if not self._scales_lr or (self.steps + 1) % self.settings.every == 0:
            self._displacement.start(groups)
        self._stepping = True

    @torch.no_grad()
    def _after_step(self, _: Optimizer, __: tuple[Any, ...], ___: dict[str, Any]) -> None:
        if not self._stepping:  # the outer of two calls, where a subclass's step calls its parent's
            return
        self._stepping = False
        self._restore_lrs()
        groups, layout = self.optimizer.param_groups, self._current_layout()
        factors = None if self._scales_lr else layout.spread(layout.read_scales(groups))
        self._displacement.finish(groups, layout.sections, factors)
        steps = self.steps + 1
        for group in groups:
            group["meta_steps"] = steps
        if steps % self.settings.every:
            self._displacement.forget(groups)

    def _learn(self, grad_scale: float | Tensor, found_inf: Tensor | None = None) -> None:
        """Equations 3 and 4 for the step that waits; nothing is learned where AMP has found an overflow."""
        groups, layout = self.optimizer.param_groups, self._current_layout()
        scales, ratio, lrs, overflowed = adaptation(
            groups,
            layout,
            rule=self.settings.rule,
            hyper_lr=self.hyper_lr,
            limits=Limits.of(self.settings),
            grad_scale=grad_scale,
            found_inf=found_inf,
        )
        self._skipped.add(overflowed)
        if self.hyper_lr:
            self._displacement.stretch(groups, layout.sections, layout.spread(ratio - 1))
        learned = scales * ratio
        layout.write_scales(groups, learned)
        self._history.record(self.steps, layout.names, learned, lrs, every=self.settings.every)
        self._displacement.forget(groups)
        if layout.members.device.type == "cpu":
            self._skipped.warn(self.steps)


def _one_record(settings: MetaLRSettings | None, **single: Any) -> MetaLRSettings:
    given = [name for name, value in single.items() if value is not None]
    if settings is not None and given:
        raise OptimizerError(
            f"MetaLR takes settings= or single settings, not both; put {', '.join(given)} into settings="
        )
    return MetaLRSettings.given(**single) if settings is None else settings
