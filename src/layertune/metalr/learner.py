"""What every way to learn has in common: the layers, the count of steps, the history, and the state in param groups."""

from abc import ABC, abstractmethod

from torch import Tensor
from torch.optim import Optimizer

from layertune.errors import OptimizerError
from layertune.metalr.attached import META_PASSES
from layertune.metalr.history import History
from layertune.metalr.sections import Layers, Sections
from layertune.metalr.settings import MetaLRSettings
from layertune.metalr.skipped import Skipped
from layertune.rates.stand_in import StandIn

__all__ = ["Learner"]

COMMON_KEYS = ("meta_scale", "meta_layers", "meta_steps", "meta_history", META_PASSES)


class Learner(ABC):
    """Do what ``MetaLR`` does in each step. Subclasses say how the rates are learned.

    Args:
        optimizer: The optimizer whose steps are made with learned rates. Its groups may hold a state that was loaded.
        layers: The parameters of each layer. Default: the layers that the groups name.

    Attributes:
        skipped: The number of adaptations without a finite meta gradient.
        history: The learned factors and rates over time.

    Raises:
        OptimizerError: The layers do not fit the optimizer, or the groups hold factors of other layers.
    """

    OWN_KEYS: tuple[str, ...]
    """The entries that a subclass writes into the param groups, beside those that all have."""

    def __init__(self, optimizer: Optimizer, layers: Layers | None) -> None:
        self._optimizer = optimizer
        self._layers = layers
        self._sections = Sections.of(optimizer, layers)
        self._sections.check_learned(optimizer.param_groups)
        self._adopt()
        self.skipped = Skipped(self._sections.members.device)
        self.history = History.of(optimizer)

    @property
    def sections(self) -> Sections:
        """How the present param groups make up layers. During a run groups may join, and parameters may be moved."""
        if not self._sections.fits(self._optimizer):
            before, self._sections = self._sections, Sections.of(self._optimizer, self._layers)
            if before.device != self._sections.device:
                self._adopt()
        return self._sections

    @property
    def steps(self) -> int:
        """Number of optimizer steps since the start of the run, resumed ones included."""
        return int(self._optimizer.param_groups[0].get("meta_steps", 0))

    @property
    @abstractmethod
    def due(self) -> bool:
        """Whether a step waits for its meta gradient."""

    @abstractmethod
    def start_step(self, stand_in: StandIn, settings: MetaLRSettings) -> None:
        """Prepare the stand-in for a step with the learned factors."""

    @abstractmethod
    def finish_step(self, settings: MetaLRSettings) -> None:
        """Take note of the step that the stand-in made, and count it."""

    @abstractmethod
    def learn(
        self, settings: MetaLRSettings, grad_scale: float | Tensor = 1.0, found_inf: Tensor | None = None
    ) -> None:
        """Learn from the meta gradient.

        Args:
            settings: The rule, its step size and its limits.
            grad_scale: The factor that the meta loss was multiplied by.
            found_inf: 1 where AMP has found an overflow; then nothing is learned.
        """

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
            self._adopt()
        except OptimizerError:
            self.remove_state()
            raise
        finally:
            self.history = History.of(self._optimizer)

    def remove_state(self) -> None:
        """Remove all that was written into the groups, and release the memory."""
        for group in self._optimizer.param_groups:
            for key in (*COMMON_KEYS, *self.OWN_KEYS):
                group.pop(key, None)

    @abstractmethod
    def _adopt(self) -> None:
        """Take over the own entries of the groups, which may have been loaded on another device."""

    def _count_step(self) -> None:
        steps = self.steps + 1
        for group in self._optimizer.param_groups:
            group["meta_steps"] = steps

    def _learns_next(self, settings: MetaLRSettings) -> bool:
        return (self.steps + 1) % settings.every == 0

    def _changes_nothing(self, settings: MetaLRSettings) -> bool:
        """Return whether nothing is or was learned, so that steps have to stay as they are bit for bit."""
        return settings.eta == 0 and not any("meta_scale" in group for group in self._optimizer.param_groups)
