"""LayerFreezeCallback: a static scheme in Lightning."""

from typing import Any

import pytorch_lightning as pl

from layertune import freeze
from layertune.policies.freezing import Frozen
from layertune.policies.policies import Policy
from layertune_lightning.module_layers import Layers, find_layers
from layertune_lightning.two_packages import Callback

__all__ = ["LayerFreezeCallback"]


class LayerFreezeCallback(Callback):
    """Train only the layers to which a policy gives a scale above 0, for the length of a fit.

    The others are frozen before ``configure_optimizers`` runs, so no backward pass runs below the first tuned layer,
    and are thawed when the fit ends, also with an exception. The network must be there by then: built in ``__init__``,
    as ``BaseFinetuning`` asks too, and not in ``configure_model``. Norms of frozen layers do not learn, but in train
    mode their running statistics keep following the data, as in Lightning's own training of a module with frozen
    parameters; set ``norm.eval()`` in ``on_train_epoch_start`` to fix them.

    Args:
        policy: ``layertune.LastLayer()``, ``BiDirectional(m, n)``, ...; its scales other than 0 are not used.
        layers: the layers of the module or of a network in it, or a function from the module to them; by default
            traced from the module's ``example_input_array``.

    Raises:
        ModelError: at the start of the fit, for a module without layers.
        PolicyError: at the start of the fit, for a policy that does not fit.

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
            self._thaw()
            network, layers = find_layers(pl_module, self.layers)
            self._frozen = freeze(network, layers, self.policy)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Thaw."""
        self._thaw()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Thaw."""
        self._thaw()

    def _thaw(self) -> None:
        if self._frozen is not None:
            self._frozen.undo()
            self._frozen = None

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: the settings."""
        return {**vars(self), "_frozen": None}
