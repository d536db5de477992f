"""MetaLR: one learning rate per layer, learned online, attached to the host's own optimizer."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from layertune.errors import OptimizerError
from layertune.metalr import attached
from layertune.metalr.adaptation import Skipped, adaptation
from layertune.metalr.displacement import Displacement, exponent_for
from layertune.metalr.history import History
from layertune.metalr.requirements import check_layers, check_meta_gradient, check_optimizer, refuse_copy
from layertune.metalr.sections import Layers, Sections
from layertune.metalr.settings import MetaLRSettings
from layertune.rates.attachment import LRMultiplier
from layertune.rates.profile import LRProfile
from layertune.rates.stand_in import StandIn

__all__ = ["MetaLR"]

KEYS = ("meta_scale", "meta_layers", "meta_steps", "meta_step", "meta_history", attached.META_PASSES)


class MetaLR(LRMultiplier):
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
        self._sections = Sections.of(optimizer, layers)
        check_layers(self._sections.names)
        check_optimizer(optimizer)
        self._sections.check_learned(optimizer.param_groups)
        self._displacement = Displacement()
        self._displacement.adopt(optimizer.param_groups)
        self._skipped = Skipped(self._sections.members.device)
        self._history = History.of(optimizer)
        super().__init__(optimizer)
        self._hooks += [
            optimizer.register_state_dict_pre_hook(self._before_saving),
            optimizer.register_load_state_dict_post_hook(self._after_loading),
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
        """Optimizer steps since the start of the run, resumed ones included."""
        return int(self.optimizer.param_groups[0].get("meta_steps", 0))

    @property
    def due(self) -> bool:
        """Whether a step waits for a meta pass and ``adapt()``."""
        return any("meta_step" in group for group in self.optimizer.param_groups)

    @property
    def lrs(self) -> dict[str, float]:
        """The present learning rate of each layer: the schedule's times the learned factor."""
        self._skipped.warn(self.steps)
        groups, sections = self.optimizer.param_groups, self._current_sections()
        scales = sections.read_scales(groups).tolist()
        rates = [float(groups[group]["lr"]) for group in sections.leading_groups(groups)]
        return {name: rate * scale for name, rate, scale in zip(sections.names, rates, scales, strict=True)}

    @property
    def skipped(self) -> int:
        """Adaptations that a meta gradient that was not finite left out."""
        return self._skipped.count

    @property
    def history(self) -> list[tuple[int, dict[str, float]]]:
        """The learned rates over time: (step, rate of each layer); long runs are thinned evenly."""
        self._skipped.warn(self.steps)
        return self._history.lrs_over_time(self._current_sections().names)

    def profile(self) -> LRProfile:
        """What was learned over time, to save, plot, or replay without meta passes.

        Raises:
            OptimizerError: nothing was learned yet.
        """
        self._skipped.warn(self.steps)
        sections = self._current_sections()
        return self._history.profile(sections.names, sections.depths(self.optimizer.param_groups))

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
        """Remove the hooks and all that MetaLR has written into the optimizer's param groups."""
        super().detach()
        attached.detach(self.optimizer)
        vars(self.optimizer).pop("__deepcopy__", None)
        self._remove_keys()
        self._displacement = Displacement()

    def _remove_keys(self) -> None:
        for group in self.optimizer.param_groups:
            for key in KEYS:
                group.pop(key, None)

    def _current_sections(self) -> Sections:
        if not self._sections.fits(self.optimizer):
            self._sections = Sections.of(self.optimizer, self._layers)
        return self._sections

    def _before_saving(self, _: Optimizer) -> None:
        sections = self._current_sections()
        sections.write_names(self.optimizer.param_groups)
        self._history.write(self.optimizer, sections.names)

    def _after_loading(self, _: Optimizer) -> None:
        self._sections = Sections.of(self.optimizer, self._layers)
        try:
            self._sections.check_learned(self.optimizer.param_groups)
            self._displacement.adopt(self.optimizer.param_groups)
        except OptimizerError:
            self._remove_keys()  # whoever goes on all the same learns anew
            raise
        finally:
            self._history = History.of(self.optimizer)

    @torch.no_grad()
    def _prepare_step(self, stand_in: StandIn) -> None:
        attached.require_latest(self.optimizer)
        groups, sections = self.optimizer.param_groups, self._current_sections()
        if self.streaming and self.due:
            # A GradScaler leaves these two on an optimizer whose fused step unscales by itself.
            scale, found_inf = (getattr(self.optimizer, name, None) for name in ("grad_scale", "found_inf"))
            self._learn(1.0 if scale is None else scale, found_inf)
        self._displacement.forget(groups)
        if not self._learns_next and self._has_numbers:
            stand_in.multiply_lrs(sections.group_scales(groups))
        else:
            exponent = 0 if self._changes_nothing else exponent_for(groups)
            self._displacement.start(groups, stand_in, exponent=exponent)

    @torch.no_grad()
    def _finish_step(self) -> None:
        groups, sections = self.optimizer.param_groups, self._current_sections()
        scales = None if self._changes_nothing else sections.spread(sections.read_scales(groups))
        self._displacement.finish(groups, sections.of_parameter, scales)
        if not self._learns_next:
            self._displacement.forget(groups)
        steps = self.steps + 1
        for group in groups:
            group["meta_steps"] = steps

    @property
    def _learns_next(self) -> bool:
        """Whether MetaLR learns from the next step, so that it has to be measured."""
        return (self.steps + 1) % self.settings.every == 0

    @property
    def _has_numbers(self) -> bool:
        """Whether the factor of each group is at hand as a number, without waiting for a device."""
        return self._sections.whole and self._sections.members.device.type == "cpu"

    @property
    def _changes_nothing(self) -> bool:
        """Whether nothing is learned and nothing was learned before, so that steps stay as they are bit for bit."""
        return self.hyper_lr == 0 and not any("meta_scale" in group for group in self.optimizer.param_groups)

    def _learn(self, grad_scale: float | Tensor, found_inf: Tensor | None = None) -> None:
        """Apply equations 3 and 4 to the last step. Nothing is learned where AMP has found an overflow."""
        groups, sections = self.optimizer.param_groups, self._current_sections()
        learned = adaptation(groups, sections, self.settings, grad_scale=grad_scale, found_inf=found_inf)
        self._skipped.add(learned.overflowed)
        if self.hyper_lr:
            corrected = learned.applied * sections.spread(learned.ratio)
            self._displacement.correct(groups, sections.of_parameter, learned.applied, corrected)
            sections.write_scales(groups, learned.scales)
        self._history.record(self.steps, sections.names, learned.scales, learned.lrs)
        self._displacement.forget(groups)
        if sections.members.device.type == "cpu":
            self._skipped.warn(self.steps)


def _one_record(settings: MetaLRSettings | None, **single: Any) -> MetaLRSettings:
    given = [name for name, value in single.items() if value is not None]
    if settings is not None and given:
        raise OptimizerError(
            f"MetaLR takes settings= or single settings, not both; put {', '.join(given)} into settings="
        )
    return MetaLRSettings.given(**single) if settings is None else settings
