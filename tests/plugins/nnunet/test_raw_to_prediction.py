"""From raw images to a prediction without layertune, by nnU-Net's own commands."""

import json
import shutil
import signal
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from layertune import LRProfile
from layertune.hosts.report import FIGURE, PROFILE
from nnunet_commands import CASES, DATASET, Workplace, dice, shrink_plans, write_raw

# Each command takes its time to import nnU-Net; minutes, on a machine that is busy.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Planned and preprocessed."""
    place = Workplace(tmp_path_factory.mktemp("nnunet"))
    write_raw(place.folder)
    # No workers would do for training, and not for planning.
    configurations = ("-c", "2d", "3d_fullres")
    place.succeed("nnUNetv2_plan_and_preprocess", "-d", 4, *configurations, "-np", 1, "-npfp", 1, nnUNet_n_proc_DA="1")
    shrink_plans(place.folder)
    return place


def train(place: Workplace, trainer: str, configuration: str, fold: int | str, *more: object) -> str:
    return place.succeed("nnUNetv2_train", 4, configuration, fold, "-tr", trainer, "-device", "cpu", *more)


@pytest.fixture(scope="module")
def stock(place: Workplace) -> Path:
    """A fold that nnU-Net's own trainer has trained for an epoch."""
    train(place, "Tiny_nnUNetTrainer", "3d_fullres", 0)
    return place.fold("Tiny_nnUNetTrainer", "3d_fullres", 0)


def predict_without_layertune(
    place: Workplace, trainer: str, configuration: str, fold: Path, cases: list[str], *more: str
) -> Path:
    """Predict from raw images in an environment without layertune, and return the folder."""
    images, predicted = fold / "images", fold / "predicted"
    images.mkdir()
    for case in cases:
        shutil.copy(place.folder / "raw" / DATASET / "imagesTr" / f"{case}_0000.nii.gz", images)
    without = place.without_layertune()
    assert "blocked: layertune" in place.run("python", "-c", "import layertune", **without).stderr
    model = ("-d", 4, "-c", configuration, "-tr", trainer, "-f", fold.name.removeprefix("fold_"))
    files = ("-i", images, "-o", predicted)
    place.succeed("nnUNetv2_predict", *files, *model, "-device", "cpu", "-npp", 0, "-nps", 0, *more, **without)
    return predicted


def assert_validation_is_predicted(
    place: Workplace, trainer: str, configuration: str, fold: Path, cases: list[str]
) -> None:
    """Check that nnU-Net alone predicts with the Dice of the validation."""
    predicted = predict_without_layertune(place, trainer, configuration, fold, cases)
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == len(cases)
    for row in summary["metric_per_case"]:
        name = Path(row["prediction_file"]).name
        for label in (1, 2):
            found = dice(predicted / name, place.folder / "raw" / DATASET / "labelsTr" / name, label)
            assert found == pytest.approx(row["metrics"][str(label)]["Dice"], nan_ok=True)


def test_pretrain_then_learn_rates_killed_and_continued_then_predict(place: Workplace, stock: Path) -> None:
    pretrained = stock / "checkpoint_final.pth"
    trainer = "Tiny_nnUNetTrainerMetaLR_hlr0p05_holdout25_3epochs"
    fold = place.fold(trainer, "3d_fullres", 0)

    arguments = (4, "3d_fullres", 0, "-tr", trainer, "-device", "cpu")
    killed = place.run("nnUNetv2_train", *arguments, "-pretrained_weights", pretrained, TINY_KILL="3")
    assert killed.returncode == -signal.SIGKILL, killed.stdout[-3000:] + killed.stderr[-3000:]
    latest = torch.load(fold / "checkpoint_latest.pth", weights_only=False)
    assert latest["current_epoch"] == 1
    assert latest["trainer_name"] == "nnUNetTrainer"
    assert not (fold / "checkpoint_final.pth").exists()

    printed = train(place, trainer, "3d_fullres", 0, "--c")
    assert "Epoch 0" not in printed
    assert printed.count("Learning rates by layer: ") == 2
    profile = LRProfile.load(fold / PROFILE)
    assert profile.steps == (1, 2, 3, 4, 5, 6)
    learned = latest["optimizer_state"]["param_groups"][0]["meta_history"]["values"][:, 0]
    assert torch.tensor(profile.scales[:2], dtype=learned.dtype).equal(learned)
    held_out = json.loads((place.folder / "preprocessed" / DATASET / "splits_holdout25_fold_0.json").read_text())
    assert len(held_out["meta"]) == 1
    assert (fold / FIGURE).exists()
    assert (fold / "progress.png").exists()
    assert not list(fold.glob(".*"))

    assert_validation_is_predicted(place, trainer, "3d_fullres", fold, CASES[4:])


def test_streaming_in_2d_on_all_folds(place: Workplace) -> None:
    trainer = "Tiny_nnUNetTrainerMetaLRStreaming_cosine_2epochs"
    train(place, trainer, "2d", "all")
    fold = place.fold(trainer, "2d", "all")
    assert len(LRProfile.load(fold / PROFILE).steps) == 3
    assert_validation_is_predicted(place, trainer, "2d", fold, CASES)


def test_an_ensemble_with_nnunets_own_trainer(place: Workplace, stock: Path) -> None:
    trainer = "Tiny_nnUNetTrainerMetaLR_1epoch"
    train(place, trainer, "3d_fullres", 0)
    folds = {"Tiny_nnUNetTrainer": stock, trainer: place.fold(trainer, "3d_fullres", 0)}
    # A trainer of the tests' own, as a colleague's may be, of which stock nnU-Net knows nothing.
    place.succeed("layertune", "nnunet", "portable", stock.parent)
    case = CASES[-1]
    members = [
        predict_without_layertune(place, name, "3d_fullres", fold, [case], "--save_probabilities")
        for name, fold in folds.items()
    ]
    place.succeed("nnUNetv2_ensemble", "-i", *members, "-o", place.folder / "ensemble", "-np", 1)
    both = [np.load(member / f"{case}.npz")["probabilities"] for member in members]
    assert not np.array_equal(*both)
    # The file's axes are x, y, z; those of nnU-Net's arrays z, y, x.
    expected = sum(both).argmax(0).T
    found = np.asanyarray(nibabel.load(place.folder / "ensemble" / f"{case}.nii.gz").dataobj)
    assert np.array_equal(found, expected)
    assert len(np.unique(found)) > 1
