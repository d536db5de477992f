"""What version 0.1 of the plug-in left on users' disks: copies of its trainer folder, and checkpoints."""

from pathlib import Path
from shutil import copy
from typing import Any

import pytest
import torch
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

import layertune_nnunet
from layertune_nnunet import nnUNetTrainerAlchemyMetaLR, nnUNetTrainerMetaLRStreaming
from nnunet_runs import make, resume

MADE = Path(__file__).with_name("made_by_0_1")
TRAINER_FOLDER = """
from typing import Any

from layertune_nnunet import trainers


def __getattr__(name: str) -> Any:
    return getattr(trainers, name)
"""


@pytest.mark.parametrize("name", ["nnUNetTrainerMetaLR", "nnUNetTrainerMetaLR_hlr0p05_20epochs", "nnUNetTrainerMine"])
def test_a_copy_of_the_trainer_folder_finds_the_trainers(name: str, tmp_path: Path) -> None:
    (tmp_path / "layertune_trainers.py").write_text(TRAINER_FOLDER)
    found = recursive_find_python_class(
        str(tmp_path), name, None, base_folder=str(tmp_path), verbose=True, cleanup_imports_from_base_folder=True
    )
    assert found is (None if name == "nnUNetTrainerMine" else getattr(layertune_nnunet, name))


def continued(trainer: type, checkpoint: str, **values: Any) -> tuple[Any, dict[str, Any]]:
    """Train the third epoch after two of version 0.1; return the trainer and the first group that 0.1 saved."""
    folder = Path(make(trainer, "2d", **values).output_folder)
    copy(MADE / checkpoint, folder / "checkpoint_latest.pth")
    saved = torch.load(folder / "checkpoint_latest.pth", weights_only=False)
    return resume(trainer, setting="2d", epochs=3, **values), saved["optimizer_state"]["param_groups"][0]


@pytest.mark.slow
@pytest.mark.usefixtures("nnunet")
@pytest.mark.parametrize(
    ("trainer", "checkpoint", "values", "steps"),
    [
        (nnUNetTrainerMetaLRStreaming, "streaming.pth", {"hyper_lr": 0.05, "rule": "cosine"}, range(1, 9)),
        (nnUNetTrainerAlchemyMetaLR, "alchemy_metalr.pth", {"identification": 1, "quantile": 0.05}, range(1, 7)),
    ],
)
def test_a_checkpoint_goes_on(trainer: type, checkpoint: str, values: dict[str, Any], steps: range) -> None:
    trained, saved = continued(trainer, checkpoint, **values)
    profile, learned = trained.profile, saved["meta_history"]
    assert profile.layers == tuple(learned["layers"])
    assert profile.steps == tuple(steps)
    kept = torch.tensor(profile.scales[: len(learned["steps"])], dtype=torch.float64)
    torch.testing.assert_close(kept, learned["values"][:, 0])
    assert all(factor != 1 for factor in profile.scales[-1])
    if "alchemy" in saved:
        assert trained.alchemy.phase == "maximisation"
        assert {name: list(kernels) for name, kernels in trained.alchemy.redundant.channels.items()} == (
            saved["alchemy"]["redundant"]["channels"]
        )
