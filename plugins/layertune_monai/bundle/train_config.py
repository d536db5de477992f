"""The training configuration of a bundle: its files, its trainer, and the parts of it that save checkpoints."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from layertune_monai.errors import BundleError

__all__ = ["TrainConfig", "inside", "is_saver", "read_train_config", "train_files"]

SUFFIXES = ("json", "yaml", "yml")
TRAINER = "train::trainer"
"""The id of the trainer in MONAI's list of a bundle's properties."""
DATA = "dataset_dir"
"""The only path that may lie outside of the bundle."""
HANDLERS = ("MetaLRHandler", "LayerFreezeHandler", "AlchemyHandler")
UPWARDS = re.compile(r"""(?:^|[/\\'"%])\.\.(?:[/\\'"]|$)""")
"""A ``..`` that is a whole part of a path, in a plain string or within an expression."""


@dataclass(frozen=True)
class TrainConfig:
    """Hold the configuration that ``python -m monai.bundle run`` would read.

    Attributes:
        files: The files as ``--config_file`` takes them, relative to the bundle. Later files override earlier ones.
        parser: Their merged content, in which nothing was evaluated.
        trainer: The id of the trainer.
    """

    files: tuple[str, ...]
    parser: ConfigParser
    trainer: str

    def trainer_argument(self, name: str) -> Any:
        """Return an argument of the trainer as the files write it, or ``None`` if they do not.

        Args:
            name: The name of the argument.
        """
        return self.parser.get(f"{self.trainer}::{name}")

    def learners(self) -> list[str]:
        """Return the ids of layertune's handlers in the configuration."""
        return [place for place, content in _walk(self.parser.get(), "") if class_name(content) in HANDLERS]

    def savers(self) -> list[str]:
        """Return the ids of all components that save checkpoints."""
        return [place for place, content in _walk(self.parser.get(), "") if is_saver(content)]


def train_files(bundle: Path, stem: str = "train") -> list[str]:
    """Return the bundle's configuration of a name, as JSON or YAML, in a list that is empty if there is none.

    Args:
        bundle: The root of the bundle.
        stem: The name of the file without its suffix.

    Raises:
        BundleError: The folder does not exist, or has no folder ``configs``.
    """
    if not (bundle / "configs").is_dir():
        fault = "has no folder 'configs'" if bundle.is_dir() else "is no folder"
        raise BundleError(f"{bundle} {fault}; give the root of a bundle, the folder that holds configs/ and models/")
    names = [f"configs/{stem}.{suffix}" for suffix in SUFFIXES]
    return [name for name in names if (bundle / name).is_file()][:1]


def inside(bundle: Path, name: str) -> Path:
    """Return the path of a file of the bundle.

    Args:
        bundle: The root of the bundle.
        name: The path of the file relative to the root.

    Raises:
        BundleError: The path leaves the bundle.
    """
    path = (bundle / name).resolve()
    if not path.is_relative_to(bundle.resolve()):
        raise BundleError(f"{name} leaves the bundle {bundle}; name a file in it, such as configs/train.json")
    return path


def read_train_config(bundle: Path, files: Sequence[str], trainer: str | None = None) -> TrainConfig:
    """Read the configurations of a bundle, and find the trainer in them.

    Args:
        bundle: The root of the bundle.
        files: The files relative to the root. Later files override earlier ones.
        trainer: The id of the trainer. By default it is the one at ``train#trainer``, or else the only component whose
            class ends in ``Trainer``.

    Returns:
        The merged configuration and the id of its trainer.

    Raises:
        BundleError: A file is missing, broken or outside of the bundle; a path in it leaves the bundle; there is no
            trainer or more than one; or the trainer has no optimizer or no network.
    """
    parser = ConfigParser(config=_load(bundle, files))
    _check_paths(parser)
    config = TrainConfig(tuple(files), parser, _find_trainer(parser, trainer, files))
    missing = [name for name in ("optimizer", "network") if config.trainer_argument(name) is None]
    if missing:
        raise BundleError(
            f"the trainer at {config.trainer.replace('::', '#')} has no {' and no '.join(missing)}; layertune fits "
            "trainers with one optimizer and one network, such as SupervisedTrainer"
        )
    return config


def class_name(content: Any) -> str:
    """Return the name of a component's class without its module; empty for anything but a component.

    Args:
        content: A part of a configuration.
    """
    return str(content.get("_target_", "")).rpartition(".")[2] if isinstance(content, dict) else ""


def is_saver(content: Any) -> bool:
    """Return whether a part of a configuration saves checkpoints, as MONAI's ``CheckpointSaver`` does.

    Args:
        content: A part of a configuration. A class derived from MONAI's counts if its name ends in ``Saver``.
    """
    return class_name(content).endswith("Saver") and "save_dir" in content


def _load(bundle: Path, files: Sequence[str]) -> Any:
    paths = [inside(bundle, name) for name in files]
    for name, path in zip(files, paths, strict=True):
        if not path.is_file():
            raise BundleError(f"{bundle} has no file {name}")
        try:
            content = ConfigParser.load_config_file(path)
        except (ValueError, yaml.YAMLError) as error:
            raise BundleError(f"{name} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise BundleError(f"{name} should hold a mapping of names to settings, and holds {type(content).__name__}")
    try:
        return ConfigParser.load_config_files(paths)
    except (KeyError, ValueError, TypeError) as error:  # an entry such as "train#trainer#max_epochs" has no parent
        raise BundleError(
            f"{files[-1]} cannot be combined with {', '.join(files[:-1])}, which lacks a part of it ({error.args[0]})"
        ) from error


def _find_trainer(parser: ConfigParser, wanted: str | None, files: Sequence[str]) -> str:
    place = (wanted or TRAINER).replace("#", "::")
    for _ in range(10):  # a reference may lead to another reference; a limit ends circles
        content = parser.get(place)
        if not (isinstance(content, str) and content.startswith("@")):
            break
        place = content[1:].replace("#", "::")
    if isinstance(content, dict):
        return place
    if wanted is not None:
        raise BundleError(f"{', '.join(files)} has no component at {wanted}")
    places = [place for place, part in _walk(parser.get(), "") if class_name(part).endswith("Trainer")]
    if len(places) != 1:
        listed = ", ".join(place.replace("::", "#") for place in places) or "none"
        raise BundleError(
            f"{', '.join(files)} has no trainer at train#trainer, where bundles have it, and these components whose "
            f"class ends in Trainer: {listed}; name the trainer by --trainer ID, or name the configuration that trains "
            "by --config"
        )
    return places[0]


def _check_paths(parser: ConfigParser) -> None:
    for place, content in _walk(parser.get(), ""):
        if place != DATA and isinstance(content, str) and UPWARDS.search(content):
            raise BundleError(
                f"{place.replace('::', '#')} is {content!r}, a path that leaves the bundle, which only {DATA} may; "
                "write it as a path below the bundle's root"
            )


def _walk(content: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield the id and the content of each part of a configuration."""
    yield place, content
    parts: Any = ()
    if isinstance(content, dict):
        parts = content.items()
    elif isinstance(content, list):
        parts = enumerate(content)
    for key, part in parts:
        yield from _walk(part, f"{place}::{key}" if place else str(key))
