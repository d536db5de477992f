"""The bundle's training in this process: exactly what it promises of resuming, of MetaLR, of Python, of mistakes."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import create_workflow, run_workflow

from bundle_runs import SMALL, flow, state
from decathlon_task import TASK, make_task
from layertune import LayertuneError, LRProfile
from layertune_monai.bundle.folder import write_bundle

pytestmark = [
    pytest.mark.slow,
    # MONAI says this of every configuration that it reads.
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_task(tmp_path_factory.mktemp("data"), cases=8).parent


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Weights, what was learned, and the place in the meta batches."""
    assert all(torch.equal(one["network"][name], other["network"][name]) for name in one["network"])
    assert factors(one) == factors(other)
    assert one.get("metalr") == other.get("metalr")


def factors(held: dict[str, Any]) -> list[float]:
    return [float(group.get("meta_scale", 1.0)) for group in held["optimizer"]["param_groups"]]


class KilledError(Exception):
    pass


def stopped(bundle: Path, data: Path, iteration: int, **options: Any) -> None:
    """A run that dies after some iterations."""
    workflow = create_workflow(
        config_file=str(bundle / "configs/train.json"),
        logging_file=False,
        bundle_root=str(bundle),
        data_dir=str(data),
        **{**SMALL, **options},
    )

    def die() -> None:
        raise KilledError

    workflow.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=iteration), die)
    with pytest.raises(RuntimeError) as caught:
        workflow.run()
    assert isinstance(caught.value.__cause__, KilledError)


def answer(error: BaseException) -> BaseException:
    """The one error of ours behind what MONAI says of the line of the configuration."""
    causes = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__
    (ours,) = [cause for cause in causes if isinstance(cause, LayertuneError)]
    return ours


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # on a single core
@pytest.mark.parametrize(
    "options", [{"method": "metalr", "num_workers": 2}, {"method": "metalr_streaming"}], ids=["workers", "streaming"]
)
def test_a_killed_run_ends_as_an_uninterrupted_one(
    bundle: Path, data: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    flow(bundle, data, hyper_lr=0.1, **options)
    other = write_bundle(tmp_path / "other")
    stopped(other, data, 3, hyper_lr=0.1, **options)
    assert not list(other.glob("models/*epoch=2.pt"))
    flow(other, data, hyper_lr=0.1, resume=True, **options)
    assert_same(state(bundle), state(other))
    assert len(set(factors(state(bundle)))) > 2, "rates were learned"
    assert torch.load(bundle / "models/model.pt", weights_only=True).keys() == state(bundle)["network"].keys()


def test_a_hyper_lr_of_0_is_the_bundle_without_the_handler(bundle: Path, data: Path) -> None:
    flow(bundle, data, method="all")
    without = state(bundle)
    assert "metalr" not in without
    flow(bundle, data, method="metalr", hyper_lr=0)
    learned = state(bundle)
    assert all(torch.equal(without["network"][name], learned["network"][name]) for name in without["network"])
    flow(bundle, data, method="metalr", hyper_lr=0.1)
    moved = state(bundle)["network"]
    assert any(not torch.equal(without["network"][name], moved[name]) for name in moved)


def test_the_python_workflow_is_the_configuration(bundle: Path, data: Path, tmp_path: Path) -> None:
    flow(bundle, data, hyper_lr=0.1)
    other = write_bundle(tmp_path / "other")
    options = {"bundle_root": str(other), "data_dir": str(data), "hyper_lr": 0.1, "logging_file": False, **SMALL}
    run_workflow("layertune_monai.Training", **options)
    assert_same(state(bundle), state(other))
    best = [torch.load(folder / "models/model.pt", weights_only=True) for folder in (bundle, other)]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])
    run_workflow("layertune_monai.Training", **{**options, "epochs": 3, "resume": True})
    flow(bundle, data, hyper_lr=0.1, epochs=3, resume=True)
    assert_same(state(bundle, 3), state(other, 3))
    rates = [group["lr"] for group in state(bundle, 2)["optimizer"]["param_groups"]]
    assert set(rates) == {0.0}
    moved = state(bundle, 3)["network"]
    assert not torch.equal(state(bundle, 2)["network"]["model.0.conv.weight"], moved["model.0.conv.weight"]), (
        "the third epoch has a rate of three epochs"
    )


@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        ({"method": "last"}, 6),
        ({"method": "layer_wise", "first": 5}, 4),
        ({"method": "bidirectional", "m": 2, "n": 3}, 2),
        ({"method": "bidirectional", "m": 2, "n": 2, "depth": "I2"}, 2),
    ],
    ids=lambda value: value.get("method") if isinstance(value, dict) else None,
)
def test_schemes_leave_frozen_layers_as_they_were(
    bundle: Path, data: Path, options: dict[str, Any], frozen: int
) -> None:
    """Seven layers; those that are frozen keep the weights of `--pretrained`."""
    flow(bundle, data, method="all", epochs=1)
    before = state(bundle, 1)["network"]
    pretrained = bundle / "start.pt"
    torch.save(before, pretrained)
    flow(bundle, data, pretrained=str(pretrained), epochs=1, **options)
    after = state(bundle, 1)["network"]
    convolutions = [name for name in before if name.endswith("conv.weight")]
    assert len(convolutions) == 7
    assert sum(torch.equal(before[name], after[name]) for name in convolutions) == frozen


def test_pretrained_weights_of_other_classes(bundle: Path, data: Path, tmp_path: Path) -> None:
    """A model of a task with two classes starts one with three; inference then gives the three."""
    flow(bundle, data, method="all", epochs=1)
    two = make_task(tmp_path, cases=8)
    content = json.loads((two / "dataset.json").read_text()) | {"labels": {"0": "background", "1": "hippocampus"}}
    (two / "dataset.json").write_text(json.dumps(content))
    for path in (two / "labelsTr").iterdir():
        label = nib.load(path)
        nib.save(nib.Nifti1Image(np.minimum(np.asarray(label.dataobj), 1).astype(np.uint8), label.affine), path)
    other = write_bundle(tmp_path / "other")
    flow(other, two.parent, method="last", epochs=1, pretrained=str(bundle / "models/model.pt"))
    ours, theirs = state(other, 1)["network"], torch.load(bundle / "models/model.pt", weights_only=True)
    assert torch.equal(ours["model.0.conv.weight"], theirs["model.0.conv.weight"])
    assert ours["model.2.conv.weight"].shape != theirs["model.2.conv.weight"].shape
    flow(other, two.parent, config="inference", images=str(two / "imagesTr"))
    assert len(list((other / "eval").glob("*_seg.nii.gz"))) == 8


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow 3.17 to SQLAlchemy 2.1
def test_what_was_learned_is_shown_as_monai_users_get_their_metrics(
    bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    flow(bundle, data, method="metalr_streaming", hyper_lr=0.1, tracking="mlflow")
    profile = LRProfile.load(bundle / "eval/learned_rates.json")
    assert (bundle / "eval/learned_rates.png").stat().st_size > 1000
    mlflow.set_tracking_uri(f"sqlite:///{bundle}/eval/mlruns.db")
    run = mlflow.search_runs(search_all_experiments=True, output_format="list")[0]
    rates = {name.removeprefix("lr/"): value for name, value in run.data.metrics.items() if name.startswith("lr/")}
    assert set(rates) == set(profile.layers)
    seen = set()
    for file in (bundle / "eval").glob("events.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        seen |= set(events.Tags()["scalars"])
    assert {f"lr/{layer}" for layer in profile.layers} <= seen
    assert {"train_loss", "val_mean_dice", "val_ppv", "val_sensitivity"} <= seen


def broken_label(data: Path) -> None:
    for path in (data / TASK / "labelsTr").iterdir():
        label = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(label.dataobj) + np.uint8(5), label.affine), path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "Task99_Nothing"}, "Task99_Nothing is not there; get the task from"),
        ({"ckpt_dir": "/nowhere"}, "ckpt_dir is /nowhere, which leaves the bundle in"),
        ({"output_dir": "../eval"}, "which leaves the bundle in"),
        ({"method": "metalr2"}, "method is one of metalr, "),
        ({"method": "bidirectional", "m": 5, "n": 9}, "n must be below d = 7"),
        ({"method": "last", "m": 2}, "m=2 belongs to the method 'bidirectional'"),
        ({"pretrained": "nowhere.pt"}, "nowhere.pt is not there"),
        ({"resume": True}, "holds no checkpoint to go on from"),
        ({"bundle_root": "elsewhere"}, "there is no bundle in"),
        ({"depth": "I3"}, "depth I1 or I2"),
        ({"train_cases": 50}, "ask for fewer"),
        ({"train_cases": 0}, "train_cases is a whole number from 1, not 0"),
        ({"patch_size": [16, 16, 20]}, "takes multiples of 8; give, for one, --patch_size '[16,16,16]'"),
        ({"method": "alchemy", "identification": 2}, "leaves none of the 2 epochs to train all layers"),
        ({"method": "all", "threshold": 0.1}, "threshold=0.1 belongs to the method alchemy or alchemy_metalr"),
        ({"method": "norm_only", "network_def#norm": "instance"}, "none of the 6 norms of UNet has a gamma"),
        ({"method": "alchemy", "network_def#norm": "instance"}, "none of the 6 norms of UNet has a gamma"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_mistakes_are_answered_by_one_clear_error(
    bundle: Path, data: Path, options: dict[str, Any], words: str
) -> None:
    before = (bundle / "models/model.pt").read_bytes()
    with pytest.raises(RuntimeError) as caught:
        flow(bundle, data, **options)
    assert words in str(answer(caught.value))
    assert (bundle / "models/model.pt").read_bytes() == before


def test_a_run_goes_on_with_what_it_was_begun_with(bundle: Path, data: Path) -> None:
    flow(bundle, data, method="all", epochs=1)
    with pytest.raises(RuntimeError) as caught:
        flow(bundle, data, method="metalr", depth="I2", resume=True)
    assert "the run to go on with has method, depth=all, I1, and not metalr, I2" in str(answer(caught.value))


def test_inference_writes_into_the_bundle_or_says_so(bundle: Path, data: Path, tmp_path: Path) -> None:
    images = str(data / TASK / "imagesTr")
    with pytest.raises(RuntimeError) as caught:
        flow(bundle, data, config="inference", images=images, output_dir=str(tmp_path / "out"))
    assert "which leaves the bundle in" in str(answer(caught.value))
    assert f"--output_dir {bundle}/eval/NAME" in str(answer(caught.value))


def test_labels_of_classes_that_the_task_has_not(bundle: Path, tmp_path: Path) -> None:
    data = make_task(tmp_path, cases=8).parent
    broken_label(data)
    with pytest.raises(RuntimeError) as caught:
        flow(bundle, data)
    assert "holds the values 5, 6, 7; this task has 3 classes" in str(answer(caught.value))


def test_a_meta_batch_that_lacks_a_key(bundle: Path, data: Path) -> None:
    transforms = "$@meta#deterministic_transforms + @meta#patch_transforms + [monai.transforms.DeleteItemsd('label')]"
    with pytest.raises(RuntimeError) as caught:
        flow(bundle, data, **{"meta#preprocessing#transforms": transforms})
    assert "cannot make a loss of the meta batch" in str(answer(caught.value))
