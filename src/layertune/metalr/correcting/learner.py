"""Measure an optimizer's steps, learn from them and correct them, with all state in its param groups."""

from torch import Tensor

from layertune.metalr.correcting.adaptation import adaptation
from layertune.metalr.correcting.displacement import Displacement, exponent_for
from layertune.metalr.learner import Learner
from layertune.metalr.resuming import FREE_KEYS, RULE
from layertune.metalr.settings import MetaLRSettings
from layertune.rates.stand_in import StandIn

__all__ = ["CorrectingLearner"]


class CorrectingLearner(Learner):
    """Learn one factor for each layer, by the rules that correct the last step (MetaLR, equations 2 to 4)."""

    OWN_KEYS = ("meta_step", RULE)

    @property
    def due(self) -> bool:
        """Whether a measured step waits for its meta gradient."""
        return any("meta_step" in group for group in self._optimizer.param_groups)

    def start_step(self, stand_in: StandIn, settings: MetaLRSettings) -> None:
        """Prepare the stand-in for a step with the learned factors."""
        groups, sections = self._optimizer.param_groups, self.sections
        self._displacement.forget(groups)
        if not self._learns_next(settings) and self._has_numbers:
            stand_in.multiply_lrs(sections.group_scales(groups))
        else:
            exponent = 0 if self._changes_nothing(settings) else exponent_for(groups)
            self._displacement.start(groups, stand_in, exponent=exponent)

    def finish_step(self, settings: MetaLRSettings) -> None:
        """Apply the step that the stand-in made, and count it."""
        groups, sections = self._optimizer.param_groups, self.sections
        scales = None if self._changes_nothing(settings) else sections.spread(sections.read_scales(groups))
        self._displacement.finish(groups, sections.of_parameter, scales)
        if not self._learns_next(settings):
            self._displacement.forget(groups)
        self._count_step()

    def learn(
        self, settings: MetaLRSettings, grad_scale: float | Tensor = 1.0, found_inf: Tensor | None = None
    ) -> None:
        """Apply equations 3 and 4 to the measured step.

        Args:
            settings: The rule, its step size and its limits.
            grad_scale: The factor that the meta loss was multiplied by.
            found_inf: 1 where AMP has found an overflow; then nothing is learned.
        """
        groups, sections = self._optimizer.param_groups, self.sections
        learned = adaptation(groups, sections, settings, grad_scale=grad_scale, found_inf=found_inf)
        self.skipped.add(learned.overflowed)
        if settings.eta:
            corrected = learned.applied * sections.spread(learned.ratio)
            self._displacement.correct(groups, sections.of_parameter, learned.applied, corrected)
            sections.write_scales(groups, learned.scales)
            groups[0][RULE] = settings.rule
        self.history.record(self.steps, sections.names, learned.scales, learned.lrs)
        self._displacement.forget(groups)
        if sections.members.device.type == "cpu":
            self.skipped.warn(self.steps)

    def remove_state(self) -> None:
        """Remove all that was written into the groups, and release the memory."""
        super().remove_state()
        self._displacement = Displacement()

    def _adopt(self) -> None:
        # A run by the rule "free" that goes on under this one keeps its rates, and no more.
        for group in self._optimizer.param_groups:
            for key in FREE_KEYS:
                group.pop(key, None)
        self._displacement = Displacement()
        self._displacement.adopt(self._optimizer.param_groups)

    @property
    def _has_numbers(self) -> bool:
        """Whether the factor of each group is at hand as a number, without waiting for a device."""
        return self._sections.whole and self._sections.members.device.type == "cpu"
