"""Trained models for colleagues without layertune: the trainer that their checkpoints name is nnU-Net's own."""

import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from layertune.weights.file import read_checkpoint
from layertune_nnunet.errors import ExportError
from layertune_nnunet.tools.find_trainer import find_trainer
from layertune_nnunet.trainers.checkpoints import portable_name

__all__ = ["Renamed", "make_portable", "stock_trainer"]

SUFFIX = ".pth"


@dataclass(frozen=True)
class Renamed:
    """What became of one checkpoint.

    Attributes:
        file: its path in the folder or zip.
        before: the trainer that it named.
        after: the trainer that it names; the same where nothing had to be done.
    """

    file: str
    before: str
    after: str

    def as_dict(self) -> dict[str, str]:
        """Plain values, for JSON."""
        return asdict(self)


def make_portable(model: Path) -> list[Renamed]:
    """Let all checkpoints of a model name a trainer of nnU-Net, so that stock nnU-Net predicts with them.

    Prediction asks a trainer for the network alone, so nothing that is predicted changes. All checkpoints are written
    anew before the first one takes its place; of a zip, the whole zip. Other files stay as they are.

    Args:
        model: the folder ``TRAINER__PLANS__CONFIGURATION``, any folder around it, or a zip as
            ``nnUNetv2_export_model_to_zip`` makes it.

    Returns:
        Each checkpoint, with the trainer that it named and names.

    Raises:
        ExportError: there is no checkpoint, a trainer builds a network of its own, or the zip is damaged or holds paths
            that lead out of it. Then nothing is changed, as with the others.
        TrainerNameError: a trainer cannot be found.
        WeightsError: a checkpoint cannot be read.
    """
    if model.is_dir():
        return _in_folder(model)
    if not model.is_file():
        raise ExportError(f"{model} is not there; give a folder with a trained model, or a zip of one")
    try:
        with zipfile.ZipFile(model) as archive:
            return _in_zip(model, archive)
    except zipfile.BadZipFile as error:
        raise ExportError(f"{model} is neither a folder nor a whole zip file ({error})") from error


def stock_trainer(name: str) -> str:
    """The trainer of nnU-Net that builds the same network as the one of this name.

    Raises:
        TrainerNameError: there is no such trainer here.
        ExportError: it builds a network that nnU-Net has not.
    """
    found = find_trainer(name)
    stock = portable_name(found)
    if stock == name and not found.__module__.startswith("nnunetv2."):
        raise ExportError(
            f"{name} builds a network of its own (build_network_architecture), which nnU-Net cannot build without it; "
            "share the trainer along with the model"
        )
    return stock


def _in_folder(model: Path) -> list[Renamed]:
    files = sorted(model.rglob(f"*{SUFFIX}"))
    with tempfile.TemporaryDirectory(dir=model, prefix=".portable") as aside:
        done = []
        for number, file in enumerate(files):
            done.append(_rename(file, str(file.relative_to(model)), Path(aside, str(number))))
        _require_some(model, done)
        # All are written; what is left can hardly fail.
        for number, (file, renamed) in enumerate(zip(files, done, strict=True)):
            if renamed is not None and renamed.before != renamed.after:
                Path(aside, str(number)).replace(file)
    return [renamed for renamed in done if renamed is not None]


def _in_zip(model: Path, archive: zipfile.ZipFile) -> list[Renamed]:
    for name in archive.namelist():
        if PurePosixPath(name).is_absolute() or ".." in name.replace("\\", "/").split("/") or ":" in name:
            raise ExportError(f"{model} holds {name!r}, a path that leads out of it; no zip of nnU-Net does")
    with tempfile.TemporaryDirectory(dir=model.parent, prefix=".portable") as aside:
        old, new, whole = (Path(aside, name) for name in ("old", "new", "whole"))
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
            whole.replace(model)
    return [renamed for renamed in done if renamed is not None]


def _rename(file: Path, name: str, to: Path) -> Renamed | None:
    """Write a checkpoint with nnU-Net's trainer in it to another file; nothing if it is no checkpoint of nnU-Net."""
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
            f"{model} holds no checkpoint of nnU-Net ({SUFFIX} with a trainer's name); give a trained model"
        )
