"""PhasedFreezingCallback: LP-FT and gradual unfreezing, in Lightning."""

from typing import Any

import pytorch_lightning as pl

from layertune import PhasedFreezing, Phases, PolicyError
from layertune.hosts.module_layers import Layers, find_layers
from layertune.policies.phases import named_phases
from layertune_lightning.example_inputs import FOR_LAYERS, example_inputs
from layertune_lightning.two_packages import Callback

__all__ = ["PhasedFreezingCallback"]


class PhasedFreezingCallback(Callback):
    """Freeze the layers that the present phase leaves out; phases follow the epochs of a fit.

    Layers are frozen after ``configure_optimizers``, so the optimizer holds all parameters, and steps over those that
    are frozen. They are unfrozen when the fit ends, also with an exception. A resumed fit goes on in its phase. Under
    DDP, use ``strategy="ddp_find_unused_parameters_true"``.

    Args:
        phases: ``"lp_ft"`` or ``layertune.LPFT()``, ``"gradual_unfreezing"`` or ``layertune.GradualUnfreezing()``, or
            another function that gives the policies of all phases.
        epochs: The number of epochs of each phase, >= 1. The last phase lasts until the end.
        statistics: Whether the running statistics of the norms in frozen layers are frozen too.
        layers: The layers of the module or of a network inside it, or a function from the module to them. Default:
            those that a trace of ``example_input_array`` finds.

    Raises:
        PolicyError: At once, for an unknown name or ``epochs`` below 1. At the start of the fit, for a policy that does
            not fit the layers.
        ModelError: At the start of the fit, if no layers can be determined.

    Example:
        >>> trainer = pl.Trainer(callbacks=[PhasedFreezingCallback("lp_ft", epochs=5)], logger=False)
    """

    def __init__(
        self, phases: str | Phases, *, epochs: int = 1, statistics: bool = False, layers: Layers | None = None
    ) -> None:
        if epochs < 1:
            raise PolicyError(f"a phase has at least 1 epoch, not {epochs}")
        self.phases, self.epochs, self.statistics, self.layers = named_phases(phases), epochs, statistics, layers
        self._freezing: PhasedFreezing | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Find the layers, so that a mistake is found before the training."""
        if stage == "fit":
            self._unfreeze()
            network, layers = find_layers(pl_module, self.layers, lambda: example_inputs(pl_module, FOR_LAYERS))
            self._freezing = PhasedFreezing(network, layers, self.phases, statistics=self.statistics)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Enter the phase of the epoch."""
        if self._freezing is not None:
            self._freezing.enter(trainer.current_epoch // self.epochs + 1)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Unfreeze."""
        self._unfreeze()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Unfreeze."""
        self._unfreeze()

    def _unfreeze(self) -> None:
        if self._freezing is not None:
            self._freezing.undo()
            self._freezing = None

    def __getstate__(self) -> dict[str, Any]:
        """Hand another process the settings, and not the parameters of this one."""
        return {**vars(self), "_freezing": None}
