"""The training configuration of anybody's bundle: where its trainer is, and what it is made of."""

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
TRAINER = "train::trainer"  # where MONAI's list of a bundle's properties has it
DATA = "dataset_dir"  # of all paths the only one that belongs outside
HANDLERS = ("MetaLRHandler", "LayerFreezeHandler", "AlchemyHandler")
UPWARDS = re.compile(r"""(?:^|[/\\'"%])\.\.(?:[/\\'"]|$)""")


@dataclass(frozen=True)
class TrainConfig:
    """What ``python -m monai.bundle run`` reads.

    Attributes:
        files: as given to ``--config_file``, relative to the bundle; later ones override.
        parser: their content, merged; nothing in it was evaluated.
        trainer: id of the trainer.
    """

    files: tuple[str, ...]
    parser: ConfigParser
    trainer: str

    def of_trainer(self, argument: str) -> Any:
        """An argument of the trainer as the files write it; ``None`` if they do not."""
        return self.parser.get(f"{self.trainer}::{argument}")

    def learners(self) -> list[str]:
        """Ids of handlers of layertune's that are there already."""
        parts = ((place, class_name(part)) for place, part in _walk(self.parser.get(), ""))
        return [place for place, name in parts if name in HANDLERS]

    def savers(self) -> list[str]:
        """Ids of all components that save checkpoints."""
        return [place for place, content in _walk(self.parser.get(), "") if is_saver(content)]


def train_files(bundle: Path, stem: str = "train") -> list[str]:
    """The bundle's configuration of that name, JSON or YAML; empty if it has none.

    Raises:
        BundleError: there is no such folder, or none with configurations in it.
    """
    if not (bundle / "configs").is_dir():
        fault = "has no folder 'configs'" if bundle.is_dir() else "is no folder"
        raise BundleError(f"{bundle} {fault}; give the root of a bundle, the folder that holds configs/ and models/")
    names = [f"configs/{stem}.{suffix}" for suffix in SUFFIXES]
    return [name for name in names if (bundle / name).is_file()][:1]


def inside(bundle: Path, name: str) -> Path:
    """A file of the bundle.

    Raises:
        BundleError: the path leaves the bundle.
    """
    path = (bundle / name).resolve()
    if not path.is_relative_to(bundle.resolve()):
        raise BundleError(f"{name} leaves the bundle {bundle}; name a file in it, as in configs/train.json")
    return path


def read_train_config(bundle: Path, files: Sequence[str], trainer: str | None = None) -> TrainConfig:
    """Read configurations, and find the trainer in them.

    Args:
        bundle: its root.
        files: relative to it; later ones override.
        trainer: the trainer's id, if it is to be told.

    Returns:
        The merged configuration with its trainer: the one told, that at ``train#trainer``, or the only component whose
        class ends in ``Trainer``.

    Raises:
        BundleError: a file that is missing, broken or outside the bundle, a path in one that leaves the bundle, no
            trainer, several, or one without an optimizer and a network.
    """
    parser = ConfigParser(config=_load(bundle, files))
    _check_paths(parser)
    found = TrainConfig(tuple(files), parser, _find_trainer(parser, trainer, files))
    missing = [name for name in ("optimizer", "network") if found.of_trainer(name) is None]
    if missing:
        raise BundleError(
            f"the trainer at {found.trainer.replace('::', '#')} has no {' and no '.join(missing)}; layertune fits "
            "trainers that are built like SupervisedTrainer, with one optimizer and one network"
        )
    return found


def class_name(content: Any) -> str:
    """The name of a component's class, without its module; empty for what is no component."""
    return str(content.get("_target_", "")).rpartition(".")[2] if isinstance(content, dict) else ""


def is_saver(content: Any) -> bool:
    """Whether this is a component that saves checkpoints: MONAI's ``CheckpointSaver``, or a child by another name."""
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
    except (KeyError, ValueError, TypeError) as error:  # what an entry such as "train#trainer#max_epochs" needs
        raise BundleError(
            f"{files[-1]} does not go with {', '.join(files[:-1])}, which lacks a part of it ({error.args[0]})"
        ) from error


def _find_trainer(parser: ConfigParser, wanted: str | None, files: Sequence[str]) -> str:
    place = (wanted or TRAINER).replace("#", "::")
    for _ in range(10):  # a reference to a reference ...
        content = parser.get(place)
        if not (isinstance(content, str) and content.startswith("@")):
            break
        place = content[1:].replace("#", "::")
    if isinstance(content, dict):
        return place
    if wanted is not None:
        raise BundleError(f"{', '.join(files)} has no component at {wanted}")
    walked = _walk(parser.get(), "")
    found = [place for place, part in walked if class_name(part).endswith("Trainer")]
    if len(found) != 1:
        listed = ", ".join(place.replace("::", "#") for place in found) or "none"
        raise BundleError(
            f"{', '.join(files)} has no trainer at train#trainer, where bundles have it, and of components whose class "
            f"ends in Trainer: {listed}; tell which one it is with --trainer ID, or take the configuration that trains "
            "with --config"
        )
    return found[0]


def _check_paths(parser: ConfigParser) -> None:
    for place, content in _walk(parser.get(), ""):
        if place != DATA and isinstance(content, str) and UPWARDS.search(content):
            raise BundleError(
                f"{place.replace('::', '#')} is {content!r}, a path that leaves the bundle, which only {DATA} may; "
                "write it below the bundle's root"
            )


def _walk(content: Any, place: str) -> Iterator[tuple[str, Any]]:
    yield place, content
    parts: Any = ()
    if isinstance(content, dict):
        parts = content.items()
    elif isinstance(content, list):
        parts = enumerate(content)
    for key, part in parts:
        yield from _walk(part, f"{place}::{key}" if place else str(key))
