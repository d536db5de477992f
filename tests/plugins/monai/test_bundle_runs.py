"""The bundle's training in this process: resuming, MetaLR, the fixed schemes, the Python workflow, and mistakes."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import create_workflow, run_workflow

from bundle_runs import SMALL, own_error, run_config, saved_state
from decathlon_task import TASK, make_task
from layertune import LRProfile
from layertune_monai import write_bundle
from layertune_monai.errors import BundleError

pytestmark = [
    pytest.mark.slow,
    # MONAI warns about every configuration that it runs.
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
]


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Compare weights, learned factors, and the position in the meta batches, bit for bit."""
    assert all(torch.equal(one["network"][name], other["network"][name]) for name in one["network"])
    assert factors(one) == factors(other)
    assert one.get("metalr") == other.get("metalr")


def factors(state: dict[str, Any]) -> list[float]:
    return [float(group.get("meta_scale", 1.0)) for group in state["optimizer"]["param_groups"]]


class StoppedError(Exception):
    pass


def stop_after(bundle: Path, data: Path, iteration: int, **options: Any) -> None:
    """Start a run that fails after some iterations."""
    workflow = create_workflow(
        config_file=str(bundle / "configs/train.json"),
        logging_file=False,
        bundle_root=str(bundle),
        data_dir=str(data),
        **{**SMALL, **options},
    )

    def stop() -> None:
        raise StoppedError

    workflow.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=iteration), stop)
    with pytest.raises(RuntimeError) as caught:
        workflow.run()
    assert isinstance(caught.value.__cause__, StoppedError)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # on a single core
@pytest.mark.parametrize(
    "options", [{"method": "metalr", "num_workers": 2}, {"method": "metalr_streaming"}], ids=["workers", "streaming"]
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    bundle: Path, data: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    run_config(bundle, data, hyper_lr=0.1, **options)
    other = write_bundle(tmp_path / "other")
    stop_after(other, data, 3, hyper_lr=0.1, **options)
    assert not list(other.glob("models/*epoch=2.pt"))
    run_config(other, data, hyper_lr=0.1, resume=True, **options)
    assert_same(saved_state(bundle), saved_state(other))
    assert set(factors(saved_state(bundle))) != {1.0}, "a rate was learned"
    assert torch.load(bundle / "models/model.pt", weights_only=True).keys() == saved_state(bundle)["network"].keys()


def test_a_hyper_lr_of_0_is_the_bundle_without_the_handler(bundle: Path, data: Path) -> None:
    run_config(bundle, data, method="all")
    without = saved_state(bundle)
    assert "metalr" not in without
    run_config(bundle, data, method="metalr", hyper_lr=0)
    learned = saved_state(bundle)
    assert all(torch.equal(without["network"][name], learned["network"][name]) for name in without["network"])
    run_config(bundle, data, method="metalr", hyper_lr=0.1)
    moved = saved_state(bundle)["network"]
    assert any(not torch.equal(without["network"][name], moved[name]) for name in moved)


def test_the_python_workflow_gives_the_weights_of_the_configuration(bundle: Path, data: Path, tmp_path: Path) -> None:
    run_config(bundle, data, hyper_lr=0.1)
    other = write_bundle(tmp_path / "other")
    options = {"bundle_root": str(other), "data_dir": str(data), "hyper_lr": 0.1, "logging_file": False, **SMALL}
    run_workflow("layertune_monai.Training", **options)
    assert_same(saved_state(bundle), saved_state(other))
    best = [torch.load(folder / "models/model.pt", weights_only=True) for folder in (bundle, other)]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])
    run_workflow("layertune_monai.Training", **{**options, "epochs": 3, "resume": True})
    run_config(bundle, data, hyper_lr=0.1, epochs=3, resume=True)
    assert_same(saved_state(bundle, 3), saved_state(other, 3))
    rates = [group["lr"] for group in saved_state(bundle, 2)["optimizer"]["param_groups"]]
    assert set(rates) == {0.0}
    moved = saved_state(bundle, 3)["network"]
    assert not torch.equal(saved_state(bundle, 2)["network"]["model.0.conv.weight"], moved["model.0.conv.weight"]), (
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
    """The network has seven layers. The frozen ones keep the weights of `--pretrained`."""
    run_config(bundle, data, method="all", epochs=1)
    before = saved_state(bundle, 1)["network"]
    pretrained = bundle / "start.pt"
    torch.save(before, pretrained)
    run_config(bundle, data, pretrained=str(pretrained), epochs=1, **options)
    after = saved_state(bundle, 1)["network"]
    convolutions = [name for name in before if name.endswith("conv.weight")]
    assert len(convolutions) == 7
    assert sum(torch.equal(before[name], after[name]) for name in convolutions) == frozen


def test_pretrained_weights_of_other_classes(bundle: Path, data: Path, tmp_path: Path) -> None:
    """A model for three classes starts the training for a task with two; its head does not fit, all else does."""
    run_config(bundle, data, method="all", epochs=1)
    two = make_task(tmp_path, cases=8)
    content = json.loads((two / "dataset.json").read_text()) | {"labels": {"0": "background", "1": "hippocampus"}}
    (two / "dataset.json").write_text(json.dumps(content))
    for path in (two / "labelsTr").iterdir():
        label = nib.load(path)
        nib.save(nib.Nifti1Image(np.minimum(np.asarray(label.dataobj), 1).astype(np.uint8), label.affine), path)
    other = write_bundle(tmp_path / "other")
    run_config(other, two.parent, method="last", epochs=1, pretrained=str(bundle / "models/model.pt"))
    ours, theirs = saved_state(other, 1)["network"], torch.load(bundle / "models/model.pt", weights_only=True)
    assert torch.equal(ours["model.0.conv.weight"], theirs["model.0.conv.weight"])
    assert ours["model.2.conv.weight"].shape != theirs["model.2.conv.weight"].shape
    run_config(other, two.parent, config="inference", images=str(two / "imagesTr"))
    assert len(list((other / "eval").glob("*_seg.nii.gz"))) == 8


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow 3.17 to SQLAlchemy 2.1
def test_learned_rates_are_reported_like_other_metrics_of_monai(
    bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    run_config(bundle, data, method="metalr_streaming", hyper_lr=0.1, tracking="mlflow")
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


def spoil_labels(data: Path) -> None:
    for path in (data / TASK / "labelsTr").iterdir():
        label = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(label.dataobj) + np.uint8(5), label.affine), path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "Task99_Nothing"}, "Task99_Nothing does not exist; get the task from"),
        ({"ckpt_dir": "/nowhere"}, "ckpt_dir is /nowhere, which is outside of the bundle in"),
        ({"output_dir": "../eval"}, "which is outside of the bundle in"),
        ({"method": "metalr2"}, "method is one of metalr, "),
        ({"method": "bidirectional", "m": 5, "n": 9}, "n must be below d = 7"),
        ({"method": "last", "m": 2}, "m=2 belongs to the method 'bidirectional'"),
        ({"pretrained": "nowhere.pt"}, "nowhere.pt is not there"),
        ({"resume": True}, "holds no checkpoint to resume from"),
        ({"bundle_root": "elsewhere"}, "there is no bundle in"),
        ({"depth": "I3"}, "depth I1 or I2"),
        ({"train_cases": 50}, "ask for fewer"),
        ({"train_cases": 0}, "train_cases is a whole number from 1, not 0"),
        ({"patch_size": [16, 16, 20]}, "takes multiples of 8; give, for example, --patch_size '[16,16,16]'"),
        ({"method": "alchemy", "identification": 2}, "leaves none of the 2 epochs to train all layers"),
        ({"method": "all", "threshold": 0.1}, "threshold=0.1 belongs to the method alchemy or alchemy_metalr"),
        ({"method": "last", "hyper_lr": 0.1}, "hyper_lr=0.1 belongs to the method metalr or metalr_streaming or"),
        ({"method": "all", "identification": 1}, "identification=1 belongs to the method alchemy or alchemy_metalr"),
        ({"metod": "last"}, "nothing in this configuration reads metod; did you mean method? Known names: bundle_root"),
        ({"train#dataloder": 4}, "nothing in this configuration reads train#dataloder"),
        ({"method": "norm_only", "network_def#norm": "instance"}, "none of the 6 norms of UNet has a gamma"),
        ({"method": "alchemy", "network_def#norm": "instance"}, "none of the 6 norms of UNet has a gamma"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_a_mistake_is_answered_by_one_clear_error(
    bundle: Path, data: Path, options: dict[str, Any], words: str
) -> None:
    before = (bundle / "models/model.pt").read_bytes()
    with pytest.raises(RuntimeError) as caught:
        run_config(bundle, data, **options)
    assert words in str(own_error(caught.value))
    assert (bundle / "models/model.pt").read_bytes() == before


def test_a_run_resumes_with_the_settings_of_its_start_only(bundle: Path, data: Path) -> None:
    run_config(bundle, data, method="all", epochs=1)
    with pytest.raises(RuntimeError) as caught:
        run_config(bundle, data, method="metalr", depth="I2", resume=True)
    assert "this run was started with method=all, depth=I1 and cannot resume with method=metalr, depth=I2" in str(
        own_error(caught.value)
    )


def test_inference_refuses_a_folder_outside_of_the_bundle(bundle: Path, data: Path, tmp_path: Path) -> None:
    images = str(data / TASK / "imagesTr")
    with pytest.raises(RuntimeError) as caught:
        run_config(bundle, data, config="inference", images=images, output_dir=str(tmp_path / "out"))
    assert "which is outside of the bundle in" in str(own_error(caught.value))
    assert f"--output_dir {bundle}/eval/NAME" in str(own_error(caught.value))


def test_a_label_that_is_no_class_of_the_task_is_named(bundle: Path, tmp_path: Path) -> None:
    data = make_task(tmp_path, cases=8).parent
    spoil_labels(data)
    with pytest.raises(RuntimeError) as caught:
        run_config(bundle, data)
    assert "holds the values 5, 6, 7; this task has 3 classes" in str(own_error(caught.value))


def test_a_meta_batch_without_a_label_is_named(bundle: Path, data: Path) -> None:
    transforms = "$@meta#deterministic_transforms + @meta#patch_transforms + [monai.transforms.DeleteItemsd('label')]"
    with pytest.raises(RuntimeError) as caught:
        run_config(bundle, data, **{"meta#preprocessing#transforms": transforms})
    assert "fails on the meta batch" in str(own_error(caught.value))


def test_names_that_an_overlay_adds_are_accepted(bundle: Path, data: Path) -> None:
    """These are expressions, and values that something in the configuration refers to."""
    overlay = {"lowest": 0.01, "lr": "$2 * @lowest", "+run": ["$print('the end')"], "other": "$@lr / 2"}
    (bundle / "configs" / "overlay.json").write_text(json.dumps(overlay))
    run_config(bundle, data, "overlay", method="last", epochs=1)
    assert saved_state(bundle, 1)["optimizer"]["param_groups"][0]["initial_lr"] == 0.02


def python_workflow(bundle: Path, data: Path, **options: Any) -> None:
    arguments = {"bundle_root": str(bundle), "data_dir": str(data), "logging_file": False, **SMALL, **options}
    run_workflow("layertune_monai.Training", **arguments)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metod": "last"}, "nothing in this configuration reads metod; did you mean method?"),
        ({"optimizer#momentum": 0.5}, "Training does not read optimizer#momentum, because it builds that part"),
        ({"method": "last", "penalty": 0.1}, "penalty=0.1 belongs to the method alchemy"),
        ({"method": "last", "meta#dataloader#batch_size": 1}, "Training does not read meta#dataloader#batch_size"),
        ({"method": "last", "every": 2}, "every=2 belongs to the method metalr"),
        ({"dataset_dir": "DIR"}, "Training does not read data_dir"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_the_python_workflow_refuses_values_that_it_does_not_read(
    bundle: Path, data: Path, options: dict[str, Any], words: str
) -> None:
    options = {name: str(data / TASK) if value == "DIR" else value for name, value in options.items()}
    with pytest.raises(BundleError) as caught:
        python_workflow(bundle, data, **options)
    assert words in str(caught.value)
    assert not list((bundle / "models").glob("checkpoint*")), "nothing was trained"
