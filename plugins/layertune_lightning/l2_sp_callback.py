"""L2SPCallback: the penalty towards the pre-trained weights, in Lightning."""

from typing import Any, Unpack

import pytorch_lightning as pl
from torch.optim import Optimizer

from layertune import L2SP
from layertune.hosts.module_layers import Layers, find_layers
from layertune.policies.l2_sp import L2SPOptions, check_l2_sp
from layertune_lightning.example_inputs import FOR_LAYERS, example_inputs
from layertune_lightning.gamma_penalty_callback import grad_scale
from layertune_lightning.two_packages import Callback

__all__ = ["L2SPCallback"]


class L2SPCallback(Callback):
    """Pull the weights towards the pre-trained ones, and those of the head towards 0; see ``layertune.L2SP``.

    The pre-trained weights are those that the module has when the fit is set up, before a checkpoint is restored. Load
    them in ``__init__``. The penalty's gradient is added to that of the loss before each optimizer step, and before
    gradients are clipped. The logged loss does not contain the penalty.

    Args:
        layers: The layers of the module or of a network inside it, or a function from the module to them. Default:
            those that a trace of ``example_input_array`` finds.
        **settings: ``alpha`` and ``beta`` of ``layertune.L2SP``, with the defaults of that class.

    Raises:
        ModelError: At the start of the fit, if no layers can be determined.
        OptimizerError: At once, for a weight out of range. At the first step, if the optimizer has a weight decay too.

    Example:
        >>> trainer = pl.Trainer(callbacks=[L2SPCallback(alpha=0.01)], logger=False)
    """

    def __init__(self, *, layers: Layers | None = None, **settings: Unpack[L2SPOptions]) -> None:
        check_l2_sp(**settings)
        self.settings, self.layers = settings, layers
        self._penalty: L2SP | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Copy the pre-trained weights."""
        if stage == "fit":
            network, layers = find_layers(pl_module, self.layers, lambda: example_inputs(pl_module, FOR_LAYERS))
            self._penalty = L2SP(network, layers, **self.settings)

    def on_before_optimizer_step(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        optimizer: Optimizer,
    ) -> None:
        """Add the gradient: that of the loss is reduced, unscaled and not clipped yet."""
        if self._penalty is not None:
            self._penalty.add_gradient(optimizer, scale=float(grad_scale(trainer, optimizer)))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Release the copy."""
        self._penalty = None

    def __getstate__(self) -> dict[str, Any]:
        """Hand another process the settings, and not the parameters of this one."""
        return {**vars(self), "_penalty": None}
