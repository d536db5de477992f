"""Learn how large the steps are, without a learning rate, from how the gradient meets the recent movement."""

import math
import warnings
from dataclasses import asdict

import torch
from torch import Tensor

from layertune.metalr.correcting.displacement import Displacement, Steps, exponent_for, local, measured_steps
from layertune.metalr.free.average import MEMORY, RecentAverage, total_squared_length, usual_weights
from layertune.metalr.free.rule import FreeRule
from layertune.metalr.learner import Learner
from layertune.metalr.resuming import FREE_KEYS, STATE
from layertune.metalr.settings import MetaLRSettings
from layertune.rates.stand_in import StandIn

__all__ = ["FreeLearner"]

START = 3e-4  # length of the first step over that of the weights
FARTHEST = 0.1  # longest movement from the average over the length of the weights
CHANGED = 1e-3  # relative change of the movement's length from which on somebody else has changed the weights


class FreeLearner(Learner):
    """Learn one factor on all learning rates.

    With theta the weights, m their average over some ten steps, g the next gradient and e = theta - m, the rule looks
    at cos(-g, e): whether the loss still falls along the recent movement. ``FreeRule`` turns it into a rate.
    """

    OWN_KEYS = FREE_KEYS

    @property
    def due(self) -> bool:
        """Whether a step waits for its meta gradient."""
        return bool(self._optimizer.param_groups[0].get("meta_due", False))

    @property
    def rule(self) -> FreeRule | None:
        """What was learned so far, or ``None`` before the first step."""
        return self._rule

    def start_step(self, stand_in: StandIn, settings: MetaLRSettings) -> None:
        """Give the stand-in the learned rates, and let the average follow the weights."""
        groups = self._optimizer.param_groups
        schedule = self._schedule = max(float(group["lr"]) for group in groups)
        # A fused optimizer leaves out a step in which AMP has found an overflow, by itself.
        overflowed = getattr(self._optimizer, "found_inf", None)
        self._moves = schedule > 0 and not (overflowed is not None and bool(overflowed))
        if self._changes_nothing(settings) or not self._moves:
            return
        groups[0].pop("meta_due", None)
        if self._rule is None and settings.start == "weights":
            # On copies, since nobody knows yet how long the step is: one that raises leaves the weights as they are.
            self._first.start(groups, stand_in, exponent=self._first_exponent())
            return
        if not self._compared and self._rule is not None:
            self._forget_foreign_changes(self._squared_movement())
        if self._average.follow(groups, again=not self._followed):
            self._length = self._length_of_weights(self._average.averages(groups))
        factor = 1.0
        if self._rule is not None:
            factor = self._rule.next_rate(schedule, respect=settings.start == "lr") / schedule
        stand_in.multiply_lrs([factor] * len(groups))

    def finish_step(self, settings: MetaLRSettings) -> None:
        """Shorten the step if it is too long, and count it."""
        groups = self._optimizer.param_groups
        if not self._changes_nothing(settings) and self._moves:
            if self._rule is None:
                self._begin(settings)
            self._squared = self._squared_movement()
            self._shorten(settings)
        self._compared = self._followed = False
        if self._learns_next(settings) and self._moves:
            groups[0]["meta_due"] = True
        self._count_step()
        if self._rule is not None and self._moves:
            self._write_factor(self._rule.rate / self._schedule)
            self._record()
            groups[0][STATE] = self._numbers()

    def learn(
        self, settings: MetaLRSettings, grad_scale: float | Tensor = 1.0, found_inf: Tensor | None = None
    ) -> None:
        """Learn from the meta gradient, and take the movement back after a gross overshoot.

        Args:
            settings: The rule, its step size and its limits.
            grad_scale: Has no effect here, since a cosine has no scale.
            found_inf: 1 where AMP has found an overflow; then nothing is learned.
        """
        del grad_scale
        groups = self._optimizer.param_groups
        groups[0].pop("meta_due", None)
        if self._rule is None or not settings.eta:
            return
        # While streaming, the next step begins at once, so the average can follow in the same pass over the weights.
        self._followed = settings.streaming
        products = self._average.compare(groups, follow=self._followed, like=self.sections.members)
        along, gradient, movement = products.tolist()
        # A small change, such as weights that are clipped after each step, is a part of the step. A larger one is not:
        # other weights were loaded, and the way to them says nothing about the rate.
        if self._forget_foreign_changes(movement) and movement > (FARTHEST * self._length) ** 2:
            return
        self._compared = settings.streaming  # otherwise the weights may change before the next step begins
        finite = math.isfinite(along) and math.isfinite(gradient)
        usual = found_inf is None or not bool(found_inf)
        if finite and usual and gradient and movement:
            self._follow(-along / math.sqrt(gradient) / math.sqrt(movement), settings)
            groups[0][STATE] = self._numbers()
        self.skipped.add(torch.tensor(not finite and usual))
        self.skipped.warn(self.steps)

    def remove_state(self) -> None:
        """Remove all that was written into the groups, and release the memory."""
        super().remove_state()
        self._adopt()

    def _adopt(self) -> None:
        groups = self._optimizer.param_groups
        self._average = RecentAverage()
        self._average.adopt(groups)
        held = dict(groups[0].get(STATE, {}))
        self._length, self._squared = held.pop("length", 0.0), held.pop("squared", 0.0)
        # The scheduler has gone on since the step that waits for its meta gradient.
        self._schedule = held.pop("schedule", 0.0)
        self._rule: FreeRule | None = FreeRule(**held) if held else None
        self._compared = self._moves = self._followed = False
        self._first: Displacement = Displacement()
        self._warned = False

    def _numbers(self) -> dict[str, float]:
        assert self._rule is not None  # only a run that has begun is saved
        own = {"length": self._length, "squared": self._squared, "schedule": self._schedule}
        return {**asdict(self._rule), **own}

    def _begin(self, settings: MetaLRSettings) -> None:
        """Give the first step its length, or leave it out if there is no gradient yet, or one that is not finite."""
        groups = self._optimizer.param_groups
        if settings.start == "lr":
            self._rule = FreeRule.begin(self._schedule, self._schedule)
        else:
            self._first.measure(groups)
            squared = float(total_squared_length(groups, measured_steps(groups), like=self.sections.members))
            if squared > 0 and math.isfinite(squared):
                self._make_first_step(math.sqrt(squared), settings)
            elif squared:
                self._warn_of_first_step()
            self._first.forget(groups)
            self._first = Displacement()  # its memory is now that of the average

    def _warn_of_first_step(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the optimizer's step {self.steps + 1} is not finite, so it was left out, and so are all until the "
                "first finite one; look at the loss and its gradients, or train in more bits",
                RuntimeWarning,
                stacklevel=8,
            )

    def _make_first_step(self, measured: float, settings: MetaLRSettings) -> None:
        groups = self._optimizer.param_groups
        measured_rate = self._schedule * 2.0 ** self._first_exponent()
        self._length = self._length_of_weights(measured_steps(groups))
        lowest, highest = self._limits(settings)
        rate = min(max(START * self._length / measured * measured_rate, lowest), highest)
        self._rule = FreeRule.begin(rate, self._schedule)
        self._average.begin(groups, measured_steps(groups), rate / measured_rate)

    def _first_exponent(self) -> int:
        """Return k, so that the rate 2^k lr of the first step does not depend on ``lr``, and keeps its digits."""
        return exponent_for(self._optimizer.param_groups) - round(math.log2(self._schedule))

    def _shorten(self, settings: MetaLRSettings) -> None:
        """Keep the movement from the average within a tenth of the weights' length."""
        farthest = FARTHEST * self._length
        if self._rule is not None and farthest * farthest < self._squared < math.inf:
            ratio = farthest / math.sqrt(self._squared)
            self._scale_movement(ratio)
            self._rule.shorten(ratio, max_change=settings.max_change)
            self._rule.bound(*self._limits(settings))

    def _follow(self, cosine: float, settings: MetaLRSettings) -> None:
        rule = self._rule
        assert rule is not None  # asked by the caller
        if rule.is_gross_overshoot(cosine):
            rule.cut()
            self._scale_movement(-(1 - MEMORY) / MEMORY if self._followed else 0.0)  # to the average before
        else:
            level = rule.level(self._schedule)
            rule.learn(cosine, gain=settings.eta, level=level, max_change=settings.max_change)
        rule.bound(*self._limits(settings))

    @staticmethod
    def _limits(settings: MetaLRSettings) -> tuple[float, float]:
        return settings.lowest_lr, math.inf if settings.max_lr is None else settings.max_lr

    def _forget_foreign_changes(self, squared: float) -> bool:
        """Let the average begin anew if the weights were changed since the last step, and return whether they were."""
        self._compared = True
        if abs(squared - self._squared) <= CHANGED * self._squared:
            return False
        self._average.restart(self._optimizer.param_groups)
        return True

    def _scale_movement(self, factor: float) -> None:
        self._average.scale_movement(self._optimizer.param_groups, factor)
        self._squared = self._squared_movement()

    def _squared_movement(self) -> float:
        groups = self._optimizer.param_groups
        return float(self._average.squared_length(groups, like=self.sections.members))

    def _length_of_weights(self, members: Steps) -> float:
        """Return the length of the weights that take part, or that of usual ones where all of them are 0."""
        groups, like = self._optimizer.param_groups, self.sections.members
        weights = [(number, index, local(groups[number]["params"][index].detach())) for number, index, _ in members]
        squared = float(total_squared_length(groups, weights, like=like))
        return math.sqrt(squared or float(total_squared_length(groups, usual_weights(weights), like=like)))

    def _write_factor(self, factor: float) -> None:
        groups, sections = self._optimizer.param_groups, self.sections
        sections.write_scales(groups, torch.full((len(sections.names),), factor, dtype=torch.float64))

    def _record(self) -> None:
        groups, sections = self._optimizer.param_groups, self.sections
        scales = sections.read_scales(groups)
        rates = scales.new_tensor([float(groups[group]["lr"]) for group in sections.leading_groups(groups)])
        self.history.record(self.steps, sections.names, scales, rates * scales)
