"""Make trained models portable: their checkpoints name nnU-Net's own trainer, so that prediction needs no layertune."""

import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from layertune.files import replace_file
from layertune.weights.file import read_checkpoint
from layertune_nnunet.errors import ExportError
from layertune_nnunet.tools.find_trainer import find_trainer
from layertune_nnunet.trainers.checkpoints import portable_name

__all__ = ["Renamed", "make_portable", "stock_trainer"]

SUFFIX = ".pth"


@dataclass(frozen=True)
class Renamed:
    """Say which trainer a checkpoint named before and names now.

    Attributes:
        file: Path of the checkpoint in the folder or zip file.
        before: The trainer that it named.
        after: The trainer that it names now. It is the same where nothing had to be changed.
    """

    file: str
    before: str
    after: str

    def as_dict(self) -> dict[str, str]:
        """Return the values for JSON."""
        return asdict(self)


def make_portable(model: Path) -> list[Renamed]:
    """Change the trainer's name in all checkpoints of a model to one of nnU-Net's own.

    Prediction asks the trainer for its network only, so predictions do not change. All new checkpoints (of a zip file,
    the whole new zip file) are written before the first one replaces the old one. Other files stay as they are.

    Args:
        model: The folder ``TRAINER__PLANS__CONFIGURATION``, any folder around it, or a zip file as
            ``nnUNetv2_export_model_to_zip`` makes it.

    Returns:
        For each checkpoint, the trainer that it named before and the trainer that it names now.

    Raises:
        ExportError: There is no checkpoint, a trainer builds a network of its own, or the zip file is damaged or holds
            paths that lead out of it. Nothing is changed then, nor with the other errors.
        TrainerNameError: A trainer cannot be found.
        WeightsError: A checkpoint cannot be read.
    """
    if model.is_dir():
        return _in_folder(model)
    if not model.is_file():
        raise ExportError(f"{model} is not there; give the folder of a trained model, or a zip file of it")
    try:
        with zipfile.ZipFile(model) as archive:
            return _in_zip(model, archive)
    except zipfile.BadZipFile as error:
        raise ExportError(f"{model} is neither a folder nor a complete zip file ({error})") from error


def stock_trainer(name: str) -> str:
    """Return the name of nnU-Net's own trainer that builds the same network as the given trainer.

    Args:
        name: The name of a trainer.

    Raises:
        TrainerNameError: There is no such trainer.
        ExportError: No trainer of nnU-Net builds this network.
    """
    trainer = find_trainer(name)
    stock = portable_name(trainer)
    if stock == name and not trainer.__module__.startswith("nnunetv2."):
        raise ExportError(
            f"{name} builds a network of its own (build_network_architecture), which nnU-Net cannot build without this "
            "trainer; share the trainer together with the model"
        )
    return stock


def _in_folder(model: Path) -> list[Renamed]:
    files = sorted(model.rglob(f"*{SUFFIX}"))
    with tempfile.TemporaryDirectory(dir=model, prefix=".portable") as folder:
        done = []
        for number, file in enumerate(files):
            done.append(_rename(file, str(file.relative_to(model)), Path(folder, str(number))))
        _require_some(model, done)
        # All new files are complete, so that hardly anything can fail from here on.
        for number, (file, renamed) in enumerate(zip(files, done, strict=True)):
            if renamed is not None and renamed.before != renamed.after:
                replace_file(Path(folder, str(number)), file)
    return [renamed for renamed in done if renamed is not None]


def _in_zip(model: Path, archive: zipfile.ZipFile) -> list[Renamed]:
    for name in archive.namelist():
        if PurePosixPath(name).is_absolute() or ".." in name.replace("\\", "/").split("/") or ":" in name:
            raise ExportError(
                f"{model} holds {name!r}, a path that leads out of it; zip files of nnU-Net have no such paths"
            )
    with tempfile.TemporaryDirectory(dir=model.parent, prefix=".portable") as folder:
        old, new, whole = (Path(folder, name) for name in ("old", "new", "whole"))
        done = []
        with zipfile.ZipFile(whole, "w") as written:
            for entry in archive.infolist():
                renamed, source = None, old
                with archive.open(entry) as content, old.open("wb") as file:
                    shutil.copyfileobj(content, file)
                if entry.filename.endswith(SUFFIX):
                    renamed = _rename(old, entry.filename, new)
                    source = new if renamed is not None and renamed.before != renamed.after else old
                done.append(renamed)
                with source.open("rb") as file, written.open(entry, "w", force_zip64=True) as content:
                    shutil.copyfileobj(file, content)
        _require_some(model, done)
        if any(renamed is not None and renamed.before != renamed.after for renamed in done):
            shutil.copymode(model, whole)
            replace_file(whole, model)
    return [renamed for renamed in done if renamed is not None]


def _rename(file: Path, name: str, to: Path) -> Renamed | None:
    """Write a checkpoint that names nnU-Net's trainer to ``to``; do nothing if it is not a checkpoint of nnU-Net."""
    checkpoint: Any = read_checkpoint(file)
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get("trainer_name"), str):
        return None
    before = checkpoint["trainer_name"]
    renamed = Renamed(name, before, stock_trainer(before))
    if renamed.after != before:
        torch.save({**checkpoint, "trainer_name": renamed.after}, to)
    return renamed


def _require_some(model: Path, done: list[Renamed | None]) -> None:
    if not any(done):
        raise ExportError(
            f"{model} holds no checkpoint of nnU-Net (a {SUFFIX} file with a trainer's name); give a trained model"
        )
