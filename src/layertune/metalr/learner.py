"""Measure an optimizer's steps, learn from them and correct them, with all state in its param groups."""

from torch import Tensor
from torch.optim import Optimizer

from layertune.errors import OptimizerError
from layertune.metalr.adaptation import Skipped, adaptation
from layertune.metalr.attached import META_PASSES
from layertune.metalr.displacement import Displacement, exponent_for
from layertune.metalr.history import History
from layertune.metalr.sections import Layers, Sections
from layertune.metalr.settings import MetaLRSettings
from layertune.rates.stand_in import StandIn

__all__ = ["Learner"]

KEYS = ("meta_scale", "meta_layers", "meta_steps", "meta_step", "meta_history", META_PASSES)


class Learner:
    """Do what ``MetaLR`` does in each step: measure it, learn from it, correct it.

    Args:
        optimizer: The optimizer whose steps are measured. Its groups may hold a state that was loaded.
        layers: The parameters of each layer. Default: the layers that the groups name.

    Attributes:
        skipped: The number of adaptations without a finite meta gradient.
        history: The learned factors and rates over time.

    Raises:
        OptimizerError: The layers do not fit the optimizer, or the groups hold factors of other layers.
    """

    def __init__(self, optimizer: Optimizer, layers: Layers | None) -> None:
        self._optimizer = optimizer
        self._layers = layers
        self._sections = Sections.of(optimizer, layers)
        self._sections.check_learned(optimizer.param_groups)
        self._displacement = Displacement()
        self._displacement.adopt(optimizer.param_groups)
        self.skipped = Skipped(self._sections.members.device)
        self.history = History.of(optimizer)

    @property
    def sections(self) -> Sections:
        """How the present param groups make up layers; groups may join during a run."""
        if not self._sections.fits(self._optimizer):
            self._sections = Sections.of(self._optimizer, self._layers)
        return self._sections

    @property
    def steps(self) -> int:
        """Number of optimizer steps since the start of the run, resumed ones included."""
        return int(self._optimizer.param_groups[0].get("meta_steps", 0))

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
        steps = self.steps + 1
        for group in groups:
            group["meta_steps"] = steps

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
        self.history.record(self.steps, sections.names, learned.scales, learned.lrs)
        self._displacement.forget(groups)
        if sections.members.device.type == "cpu":
            self.skipped.warn(self.steps)

    def write_state(self) -> None:
        """Write into the groups what is kept elsewhere during a run."""
        sections = self.sections
        sections.write_names(self._optimizer.param_groups)
        self.history.write(self._optimizer, sections.names)

    def read_state(self) -> None:
        """Go on from a state that was loaded.

        Raises:
            OptimizerError: The state belongs to other layers. It is removed, so that learning starts anew.
        """
        self._sections = Sections.of(self._optimizer, self._layers)
        try:
            self._sections.check_learned(self._optimizer.param_groups)
            self._displacement.adopt(self._optimizer.param_groups)
        except OptimizerError:
            self.remove_state()
            raise
        finally:
            self.history = History.of(self._optimizer)

    def remove_state(self) -> None:
        """Remove all that was written into the groups, and release the memory."""
        for group in self._optimizer.param_groups:
            for key in KEYS:
                group.pop(key, None)
        self._displacement = Displacement()

    def _learns_next(self, settings: MetaLRSettings) -> bool:
        return (self.steps + 1) % settings.every == 0

    def _changes_nothing(self, settings: MetaLRSettings) -> bool:
        """Return whether nothing is or was learned, so that steps have to stay as they are bit for bit."""
        return settings.eta == 0 and not any("meta_scale" in group for group in self._optimizer.param_groups)

    @property
    def _has_numbers(self) -> bool:
        """Whether the factor of each group is at hand as a number, without waiting for a device."""
        return self._sections.whole and self._sections.members.device.type == "cpu"
