"""The network of a study: built by its name, checked against the data, and filled with pre-trained weights."""

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layertune import LayerMap, load_weights, map_layers, read_weights
from layertune.errors import WeightsError
from layertune.hosts.networks import import_factory, named_network
from layertune_studies.config.study import Network
from layertune_studies.errors import DataError, StudyError
from layertune_studies.training.packaged_weights import PACKAGED, packaged_file

__all__ = [
    "WEIGHTS",
    "adopt_weights",
    "device",
    "make_network",
    "network_layers",
    "pretrained_weights",
    "reset_head",
]

# Weights by name: the file below the folder of all data, and where it comes from.
WEIGHTS: dict[str, tuple[str, str]] = {
    "uscl-resnet18": (
        "weights/uscl_resnet18.pth",
        "USCL's ResNet-18, pre-trained on ultrasound videos (US-4): https://github.com/983632847/USCL",
    ),
    "genesis-chest-ct": (
        "weights/Genesis_Chest_CT.pt",
        "Models Genesis' 3D U-Net, pre-trained on chest CT, for research: https://github.com/MrGiovanni/ModelsGenesis",
    ),
    "medicalnet-resnet18": (
        "weights/resnet_18_23dataset.pth",
        "MedicalNet's 3D ResNet-18, pre-trained on 23 data sets: https://github.com/Tencent/MedicalNet, MIT",
    ),
    "c2l-resnet18": (
        "weights/c2l_resnet18.pth",
        "C2L's ResNet-18, pre-trained on chest X-rays: https://github.com/funnyzhou/C2L_MICCAI2020",
    ),
}


def device() -> torch.device:
    """Return a GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_network(config: Network, *, classes: int, shape: tuple[int, ...], pretrained: bool = True) -> nn.Module:
    """Build the network of a study, with random weights unless its arguments ask the constructor for others.

    Args:
        config: The section of the study's file.
        classes: Number of channels of the output.
        shape: Shape of an image, channels first.
        pretrained: False for random weights even if the arguments ask for others, as ``pretrained: true`` of timm does.

    Raises:
        ModelError: The name is unknown, or the constructor refuses the arguments.
    """
    own_arguments = {key: value for key, value in config.arguments.items() if pretrained or key != "pretrained"}
    arguments = {**_default_arguments(config.name, classes, shape), **own_arguments}
    network = named_network(config.name, shape=(2, *shape), arguments=arguments).network
    if config.channels_last:
        network.to(memory_format=torch.channels_last if len(shape) == 3 else torch.channels_last_3d)
    return network


def network_layers(config: Network, *, classes: int, shape: tuple[int, ...]) -> LayerMap:
    """Return the layers of a study's network; they are mapped once per process.

    Raises:
        ModelError: The network refuses images of this shape, or has no such depths.
        StudyError: The output of the network does not fit the data.
    """
    return _layers(config.model_dump_json(), classes, shape)


@lru_cache(maxsize=8)
def _layers(network: str, classes: int, shape: tuple[int, ...]) -> LayerMap:
    config = Network.model_validate_json(network)
    with torch.random.fork_rng(devices=[]):
        example_network = make_network(config, classes=classes, shape=shape)
    layers = map_layers(example_network, torch.empty(2, *shape), granularity=config.granularity, depth=config.depth)
    with torch.no_grad():
        output = example_network.eval()(torch.zeros(1, *shape))
    output = output[0] if isinstance(output, list | tuple) else output
    if output.shape[1] != classes:
        raise StudyError(
            f"network.name {config.name} gives {output.shape[1]} classes, and the data have {classes}; leave the "
            "number of classes out of network.arguments, or correct it"
        )
    return layers


def pretrained_weights(name: str, root: Path | None) -> Mapping[str, Tensor]:
    """Read weights from a file, or known ones by name.

    Raises:
        DataError: The file is not there; the message says where to get it.
        MissingPackageError: The package that brings these weights is not installed.
        WeightsError: The file holds no weights.
    """
    if name in PACKAGED:
        return read_weights(packaged_file(name))
    file, source = WEIGHTS.get(name, (name, "Give a path, absolute or below the folder of all data"))
    path = (root or Path()) / file
    if not path.is_file():
        raise DataError(f"pretraining.weights {name}: there is no {path}. {source}")
    return read_weights(path)


def reset_head(network: nn.Module, layers: LayerMap) -> None:
    """Start the head of a network from PyTorch's default initialisation.

    Raises:
        StudyError: A part of the head has no default initialisation.
    """
    modules = dict(network.named_modules())
    for name in dict.fromkeys(parameter.rpartition(".")[0] for parameter in layers.head.parameters):
        reset = getattr(modules[name], "reset_parameters", None)
        if reset is None:
            raise StudyError(f"network.reset_head: {name or 'the network'} has no reset_parameters; leave the key out")
        reset()


def adopt_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """Copy the weights that certainly fit, and return a summary; the head of another task stays new.

    Raises:
        WeightsError: No weight fits.
    """
    try:
        return load_weights(network, weights).summary()
    except WeightsError as error:
        raise WeightsError(f"pretraining.weights do not fit {type(network).__name__}: {error}") from error


def _default_arguments(name: str, classes: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the arguments that the data determine, by the names that the constructor has for them."""
    if ":" in name:
        factory: Callable[..., Any] | None = import_factory(name)
    else:
        import timm
        from monai.networks import nets

        if timm.is_model(name):
            return {"num_classes": classes, "in_chans": shape[0]}
        factory = getattr(nets, name, None)
    if not callable(factory):
        return {}
    known = {
        "spatial_dims": len(shape) - 1,
        "in_channels": shape[0],
        "n_input_channels": shape[0],
        "out_channels": classes,
        "num_classes": classes,
    }
    return {key: value for key, value in known.items() if key in inspect.signature(factory).parameters}
