"""The study of X-rays: what it chooses, and that it goes on where it was interrupted."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD
from typer.testing import CliRunner

from layertune_studies import pneumonia
from layertune_studies.data.digits import digits
from layertune_studies.errors import DataError
from layertune_studies.pneumonia import Plan, app, run
from layertune_studies.pneumonia_data import FILE, few, xrays
from layertune_studies.pneumonia_methods import METHODS, Setting, best, choose, tuned_rate
from layertune_studies.pneumonia_training import NETWORKS, Network
from layertune_studies.training.lightning import quiet

LRS = (0.01, 0.1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file as MedMNIST's, of as many images: those of pneumonia are bright."""
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 4708), ("val", 524), ("test", 624)):
        labels = np.arange(count, dtype=np.uint8)[:, None] % 2
        noise = random.integers(0, 60, (count, 28, 28))
        arrays |= {f"{split}_images": (noise + 150 * labels[:, :, None]).astype(np.uint8), f"{split}_labels": labels}
    np.savez(tmp_path / FILE, **arrays)
    return tmp_path


def small_network(classes: int) -> nn.Module:
    def block() -> list[nn.Module]:
        return [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]

    first = [nn.Conv2d(1, 4, 3, stride=4), nn.ReLU()]
    return nn.Sequential(*first, *block(), *block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Network(title="Small", build=small_network, optimizer=SGD, lrs=LRS, pretrain_lr=0.1, pretrain_steps=2)
    monkeypatch.setitem(NETWORKS, "small", spec)


PLAN = Plan(networks=("small",), seeds=2, images=16, steps=4, batch=8)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_it_goes_on_where_it_was_interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    def told(name: str) -> None:
        started.append(name)
        if name == "small-exact-lr0.01-seed0":
            raise KeyboardInterrupt

    with quiet(), pytest.raises(KeyboardInterrupt):
        run(PLAN, folder, folder / "out", told)
    kept = started[:-1]
    assert kept[0] == "small-pretraining"
    with quiet():
        whole = run(PLAN, folder, folder / "out", started.append)
    assert len(started) == len(set(started)) + 1, "only the one that was interrupted starts again"
    monkeypatch.setattr(pneumonia, "tune", None)
    assert run(PLAN, folder, folder / "out", started.append) == whole, "nothing is left to do"
    rows = whole["small"]["rows"]
    assert [row["method"] for row in rows] == [method.title for method in METHODS]
    assert all(0 <= value <= 1 for row in rows for value in row["accuracy"])
    assert all(len(set(lrs.values())) > 1 for row in rows if "exact" in row["method"] for lrs in row["lrs"])
    assert [row["passes"] / PLAN.steps for row in rows] == [1, 2, 1, 1, 2, 2, 1, 1]


def piece(accuracy: float, loss: float) -> dict[str, object]:
    return {"validation": {"accuracy": accuracy, "loss": loss}}


def test_the_validation_images_choose_and_the_loss_breaks_ties() -> None:
    assert best([piece(0.8, 0.1), piece(0.9, 0.5), piece(0.9, 0.4)]) == 2
    pieces = {0.01: piece(0.7, 0.1), 0.1: piece(0.9, 0.1)}
    assert tuned_rate(LRS, lambda setting: pieces[setting.lr]) == 0.1
    chosen = choose(METHODS[1], LRS, 0.1, 10, lambda setting: pieces[setting.lr])
    assert (chosen.setting.lr, chosen.passes) == (0.1, 2)


def test_settings_have_names_of_their_own() -> None:
    settings = {setting for method in METHODS for setting in method.settings(LRS, 0.1, 10)}
    assert len({setting.name for setting in settings}) == len(settings)
    assert Setting(lr=0.1, frozen=(2, 8)).name == "all-frozen2to8-lr0.1"
    assert Setting(lr=0.1, meta="exact").passes == 2


def test_few_images_are_drawn_once_each_and_by_the_seed(folder: Path) -> None:
    images = xrays("train", folder)
    one, again, other = (few(images, 16, seed=seed).indices for seed in (0, 0, 1))
    assert one == again != other
    assert len(set(one)) == 16
    with pytest.raises(DataError, match="41 training images were asked for, and there are 40"):
        few(range(40), 41, seed=0)


def test_xrays_and_digits_look_alike(folder: Path) -> None:
    for images in (xrays("val", folder), *digits()):
        image, label = images[1]
        assert image.shape == (1, 28, 28)
        assert image.dtype == torch.float32
        assert -1 <= image.min() < image.max() <= 1
        assert int(label) == label
    assert xrays("val", folder)[1][1] == 1


def test_the_real_file_is_read_by_medmnists_own_class(xrays_dir: Path) -> None:
    assert [len(xrays(split, xrays_dir)) for split in ("train", "val", "test")] == [4708, 524, 624]


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "there is no pneumoniamnist.npz" in done.stderr
    assert not (tmp_path / "out").exists()
