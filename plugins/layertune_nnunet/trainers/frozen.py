"""Trainers that freeze a part of the network from the start of the training."""

import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from layertune import BiDirectional, LastLayer, LayerWise, PolicyError, freeze
from layertune.layers.names import named_parameters
from layertune.policies.freezing import Frozen
from layertune.policies.policies import Policy
from layertune_nnunet.trainers.base import LayeredMixin
from layertune_nnunet.trainers.names import Suffix

__all__ = ["BiDirectionalMixin", "FixedLayersMixin", "FrozenMixin", "LastLayerMixin", "LayerWiseMixin"]


class FrozenMixin(LayeredMixin):
    """Freeze a part of the network before the optimizer, the compiler and DDP see it.

    The optimizer keeps all parameters. It does not change those without a gradient, not even by weight decay.
    """

    frozen: Frozen | None = None
    build_network_architecture: Any  # nnU-Net's own
    # The checksums of the network's parameters when nnU-Net had built it.
    _initial: Mapping[str, int] = MappingProxyType({})

    def freeze(self) -> Frozen:
        """Freeze parameters and return the handle. A trainer made of this mixin has to define it."""
        raise NotImplementedError(f"{type(self).__name__} has to say what it freezes: define freeze(self)")

    def configure_optimizers(self, *args: Any, **kwargs: Any) -> Any:
        """Freeze, then make the trainer's own optimizer."""
        if self.frozen is None:
            self.frozen = self.freeze()
        return super().configure_optimizers(*args, **kwargs)

    def initialize(self) -> None:
        """Build the network, and remember its initial weights."""
        # Some trainers load weights within `initialize`, so the end of it would be too late.
        with self._watch_building():
            super().initialize()

    def on_train_start(self) -> None:
        """Warn of frozen layers that were never trained."""
        super().on_train_start()
        frozen = self._frozen_weights()
        as_built = {name for name, weight in frozen.items() if self._initial.get(name) == _checksum(weight)}
        if as_built:
            layers = self._layers_of(as_built)
            named = "all frozen layers" if layers == self._layers_of(frozen) else ", ".join(layers)
            self.warn_once(
                f"frozen layers keep the random weights that the network was built with: {named}; start from "
                "a trained network with -pretrained_weights, or train these layers too"
            )

    @contextmanager
    def _watch_building(self) -> Iterator[None]:
        """Keep the checksums of all parameters as soon as nnU-Net has built the network."""
        build = self.build_network_architecture

        @wraps(build)  # nnU-Net reads its signature
        def build_and_remember(*args: Any, **kwargs: Any) -> nn.Module:
            network: nn.Module = build(*args, **kwargs)
            self._initial = {name: _checksum(parameter) for name, parameter in named_parameters(network).items()}
            return network

        self.build_network_architecture = build_and_remember
        try:
            yield
        finally:
            del self.build_network_architecture

    def _frozen_weights(self) -> dict[str, nn.Parameter]:
        """Return the frozen parameters of more than one dimension; the others start from constants."""
        names = () if self.frozen is None else self.frozen.names
        parameters = named_parameters(self.network)
        return {name: parameters[name] for name in names if parameters[name].ndim > 1}

    def _layers_of(self, names: Collection[str]) -> list[str]:
        return [layer.name for layer in self.layers if not set(names).isdisjoint(layer.parameters)]


class FixedLayersMixin(FrozenMixin):
    """Freeze the layers to which a policy gives scale 0. A trainer of your own defines ``policy``."""

    def policy(self) -> Policy:
        """Return the policy that says which layers train. A trainer made of this mixin has to define it."""
        raise NotImplementedError(f"{type(self).__name__} has to say which layers it tunes: define policy(self)")

    def freeze(self) -> Frozen:
        """Freeze the layers that the policy leaves out, and list the others in the log."""
        frozen = freeze(self.network, self.layers, self.policy())
        tuned = [layer.name for layer in self.layers if not set(layer.parameters) & set(frozen.names)]
        self.print_to_log_file(f"{len(tuned)} of {len(self.layers)} layers are tuned: {', '.join(tuned)}")
        return frozen


class BiDirectionalMixin(FixedLayersMixin):
    """Freeze the layers of depths m to n, and tune those on both sides (MetaLR sec. 2.1).

    Attributes:
        m: The shallowest frozen depth, from 1. Suffix ``_m3``.
        n: The deepest frozen depth, below the depth of the head. Suffix ``_n6``.
    """

    m: ClassVar[int | None] = None
    n: ClassVar[int | None] = None
    suffixes: ClassVar[tuple[Suffix, ...]] = (
        Suffix("m", r"m(\d+)", int, "m3", "the shallowest frozen depth is 3"),
        Suffix("n", r"n(\d+)", int, "n6", "the deepest frozen depth is 6"),
    )

    def policy(self) -> Policy:
        """Return the policy that freezes depths m to n."""
        if self.m is None or self.n is None:
            raise PolicyError(_missing_depth(self, "BiDirectional_m2_n4"))
        return BiDirectional(m=self.m, n=self.n)


class LayerWiseMixin(FixedLayersMixin):
    """Tune the layers from one depth on, and freeze the shallower ones (MetaLR sec. 2.1).

    Attributes:
        first: The shallowest depth that is tuned. Suffix ``_first4``.
    """

    first: ClassVar[int | None] = None
    suffixes: ClassVar[tuple[Suffix, ...]] = (
        Suffix("first", r"first(\d+)", int, "first4", "the shallowest tuned depth is 4"),
    )

    def policy(self) -> Policy:
        """Return the policy that freezes the depths before ``first``."""
        if self.first is None:
            raise PolicyError(_missing_depth(self, "LayerWise_first4"))
        return LayerWise(first=self.first)


class LastLayerMixin(FixedLayersMixin):
    """Tune the head only, which is all segmentation layers."""

    def policy(self) -> Policy:
        """Return the policy that freezes all layers but the head."""
        return LastLayer()


def _checksum(parameter: Tensor) -> int:
    return zlib.crc32(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())


def _missing_depth(trainer: LayeredMixin, example: str) -> str:
    listed = ", ".join(f"{layer.depth} {layer.name}" for layer in trainer.layers)
    return (
        f"{type(trainer).__name__} does not know which layers to tune; give the depths in its name, as in "
        f"-tr nnUNetTrainer{example}. This network has the depths {listed}"
    )
