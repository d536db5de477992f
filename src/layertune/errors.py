"""The errors of layertune: one family, each of which is also the built-in error that a caller would expect."""

__all__ = [
    "AlchemyError",
    "LayertuneError",
    "MetaBatchError",
    "MissingPackageError",
    "ModelError",
    "OptimizerError",
    "PolicyError",
    "ProfileError",
    "SaveError",
    "WeightsError",
]


class LayertuneError(Exception):
    """The base of all errors that layertune raises.

    Each message says what was expected, what came, and what to do next.
    """


class AlchemyError(LayertuneError, ValueError):
    """A threshold, a phase, a saved state or a checkpoint does not fit the network or its gammas."""


class ModelError(LayertuneError, ValueError):
    """The network cannot be traced, or does not have the structure that was asked for."""


class PolicyError(LayertuneError, ValueError):
    """A policy's numbers do not fit the network, or leave nothing to train."""


class OptimizerError(LayertuneError, ValueError):
    """The optimizer, its param groups or its gradients do not work with a method."""


class ProfileError(LayertuneError, ValueError):
    """A profile is damaged, or belongs to another network."""


class SaveError(LayertuneError, OSError):
    """A file cannot be written: its folder is missing, or the system refuses.

    ``errno`` and ``strerror`` are those of the system's error.
    """

    def __str__(self) -> str:
        """Return the message; an ``OSError`` with an ``errno`` would show the system's words in its place."""
        return str(self.args[0])


class WeightsError(LayertuneError, ValueError):
    """Weights cannot be read, or do not belong to the network."""


class MetaBatchError(LayertuneError, ValueError):
    """There is no meta batch, or the training step cannot use it."""


class MissingPackageError(LayertuneError, ImportError):
    """A package is needed and not installed, or it is too old; the message holds the line that installs it."""
