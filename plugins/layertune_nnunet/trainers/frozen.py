"""Trainers that freeze a part of the network from the start of a run, by layers above all."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from layertune import BiDirectional, LastLayer, LayerWise, PolicyError, freeze
from layertune.layers.names import named_parameters
from layertune.policies.freezing import Frozen
from layertune.policies.policies import Policy
from layertune_nnunet.trainers.base import LayeredMixin
from layertune_nnunet.trainers.names import Suffix

__all__ = ["BiDirectionalMixin", "FixedLayersMixin", "FrozenMixin", "LastLayerMixin", "LayerWiseMixin"]


class FrozenMixin(LayeredMixin):
    """Freeze a part of the network before the optimizer, the compiler and DDP see it.

    The optimizer keeps all parameters, and leaves those alone that have no gradient, decay included.
    """

    frozen: Frozen | None = None
    _as_built: Mapping[str, int] = MappingProxyType({})

    def freeze(self) -> Frozen:
        """Freeze, once; a mixin made of this one says what."""
        raise NotImplementedError(f"{type(self).__name__} has to say what it freezes: define freeze(self)")

    def configure_optimizers(self, *args: Any, **kwargs: Any) -> Any:
        """Freeze, then make the trainer's own optimizer."""
        if self.frozen is None:
            self.frozen = self.freeze()
        return super().configure_optimizers(*args, **kwargs)

    def initialize(self) -> None:
        """Remember how often the frozen parameters were written; DDP writes them too, so only when all is built."""
        super().initialize()
        self._as_built = self._versions()

    def on_train_start(self) -> None:
        """Warn if what is frozen was never trained."""
        super().on_train_start()
        if self._as_built and self._versions() == self._as_built:
            self.print_to_log_file(
                "WARNING: the frozen layers have their random initial weights, and will keep them; start from a "
                "trained network with -pretrained_weights"
            )

    def _versions(self) -> dict[str, int]:
        """How often each frozen parameter was written."""
        names = () if self.frozen is None else self.frozen.names
        parameters = named_parameters(self.network)
        return {name: parameters[name]._version for name in names}


class FixedLayersMixin(FrozenMixin):
    """Freeze the layers to which a policy gives scale 0; a trainer of your own says which by its ``policy``."""

    def policy(self) -> Policy:
        """Which layers are tuned; a trainer of your own says it, and is told so where it does not."""
        raise NotImplementedError(f"{type(self).__name__} has to say which layers it tunes: define policy(self)")

    def freeze(self) -> Frozen:
        """Freeze the policy's layers, and list the others in the log."""
        frozen = freeze(self.network, self.layers, self.policy())
        tuned = [layer.name for layer in self.layers if not set(layer.parameters) & set(frozen.names)]
        self.print_to_log_file(f"{len(tuned)} of {len(self.layers)} layers are tuned: {', '.join(tuned)}")
        return frozen


class BiDirectionalMixin(FixedLayersMixin):
    """Freeze depths m to n, and tune both ends (MetaLR sec. 2.1).

    Attributes:
        m: the shallowest frozen depth, from 1; suffix ``_m3``.
        n: the deepest, below the head's; suffix ``_n6``.
    """

    m: ClassVar[int | None] = None
    n: ClassVar[int | None] = None
    suffixes: ClassVar[tuple[Suffix, ...]] = (
        Suffix("m", r"m(\d+)", int, "m3", "the shallowest frozen depth is 3"),
        Suffix("n", r"n(\d+)", int, "n6", "the deepest frozen depth is 6"),
    )

    def policy(self) -> Policy:
        """Depths m to n frozen."""
        if self.m is None or self.n is None:
            raise PolicyError(_depth_wanted(self, "BiDirectional_m2_n4"))
        return BiDirectional(m=self.m, n=self.n)


class LayerWiseMixin(FixedLayersMixin):
    """Tune the layers from one depth on, and freeze the shallower ones (MetaLR sec. 2.1).

    Attributes:
        first: the shallowest depth that is tuned; suffix ``_first4``.
    """

    first: ClassVar[int | None] = None
    suffixes: ClassVar[tuple[Suffix, ...]] = (
        Suffix("first", r"first(\d+)", int, "first4", "the shallowest tuned depth is 4"),
    )

    def policy(self) -> Policy:
        """The shallower layers frozen."""
        if self.first is None:
            raise PolicyError(_depth_wanted(self, "LayerWise_first4"))
        return LayerWise(first=self.first)


class LastLayerMixin(FixedLayersMixin):
    """Tune the head alone, which is every segmentation layer."""

    def policy(self) -> Policy:
        """All but the head frozen."""
        return LastLayer()


def _depth_wanted(trainer: LayeredMixin, example: str) -> str:
    listed = ", ".join(f"{layer.depth} {layer.name}" for layer in trainer.layers)
    return (
        f"{type(trainer).__name__} does not know which layers to tune; say it in the name, as in "
        f"-tr nnUNetTrainer{example}. This network has the depths {listed}"
    )
