"""LayerFreezeCallback: train only the layers that a policy chooses, in Lightning."""

from typing import Any

import pytorch_lightning as pl

from layertune import freeze
from layertune.hosts.module_layers import Layers, find_layers
from layertune.policies.freezing import Frozen
from layertune.policies.policies import Policy
from layertune_lightning.example_inputs import FOR_LAYERS, example_inputs
from layertune_lightning.two_packages import Callback

__all__ = ["LayerFreezeCallback"]


class LayerFreezeCallback(Callback):
    """Train only the layers to which a policy gives a scale above 0, during a fit.

    The other layers are frozen before ``configure_optimizers`` runs, so no backward pass runs below the first trained
    layer. They are unfrozen when the fit ends, also with an exception. The network must exist before the fit: build it
    in ``__init__``, as ``BaseFinetuning`` also requires, and not in ``configure_model``. Norms of frozen layers do not
    learn, but in train mode their running statistics follow the data, as in Lightning's own training of a module with
    frozen parameters; call ``norm.eval()`` in ``on_train_epoch_start`` to fix them.

    Args:
        policy: ``layertune.LastLayer()``, ``BiDirectional(m, n)``, ...; of its scales only 0 or not 0 matters.
        layers: The layers of the module or of a network inside it, or a function from the module to them. Default:
            those that a trace of ``example_input_array`` finds.

    Raises:
        ModelError: At the start of the fit, if no layers can be determined.
        PolicyError: At the start of the fit, if the policy does not fit the layers.

    Example:
        >>> from layertune import LastLayer
        >>> trainer = pl.Trainer(callbacks=[LayerFreezeCallback(LastLayer())], logger=False)
    """

    def __init__(self, policy: Policy, *, layers: Layers | None = None) -> None:
        self.policy = policy
        self.layers = layers
        self._frozen: Frozen | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Freeze, before Lightning asks the module for its optimizers."""
        if stage == "fit":
            self._unfreeze()
            network, layers = find_layers(pl_module, self.layers, lambda: example_inputs(pl_module, FOR_LAYERS))
            self._frozen = freeze(network, layers, self.policy)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Unfreeze."""
        self._unfreeze()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Unfreeze."""
        self._unfreeze()

    def _unfreeze(self) -> None:
        if self._frozen is not None:
            self._frozen.undo()
            self._frozen = None

    def __getstate__(self) -> dict[str, Any]:
        """Hand another process the settings, and not the parameters of this one."""
        return {**vars(self), "_frozen": None}
