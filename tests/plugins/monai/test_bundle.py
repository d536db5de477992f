"""The files of the bundle, MONAI's own checks of them, and the functions that its configurations name."""

import json
import logging
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, create_workflow, load, verify_metadata, verify_net_in_out
from monai.data import Dataset
from monai.transforms import RandGaussianNoise
from typer.testing import CliRunner

from decathlon_task import make_task
from layertune_monai.bundle.checkpoints import BestModelSaver, last_checkpoint, training_state
from layertune_monai.bundle.decathlon import TaskInfo, task_info
from layertune_monai.bundle.epoch_seeds import EpochSeeds
from layertune_monai.bundle.folder import check_paths, describe_task, write_bundle
from layertune_monai.commands import app
from layertune_monai.errors import BundleError

# MONAI warns about every configuration that it runs.
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")

FILES = [
    "LICENSE",
    "configs/evaluate.json",
    "configs/inference.json",
    "configs/logging.conf",
    "configs/metadata.json",
    "configs/multi_gpu_evaluate.json",
    "configs/multi_gpu_train.json",
    "configs/train.json",
    "docs/README.md",
    "docs/data_license.txt",
    "models/model.pt",
]
SCHEMA = Path(__file__).parent / "meta_schema.json"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("put") / "metalr_unet")


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    """MONAI changes the root logger by a bundle's logging.conf."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def metadata_of(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "configs/metadata.json").read_text())


def test_it_has_all_files(bundle: Path) -> None:
    assert sorted(str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()) == FILES


def test_its_weights_are_the_same_in_each_folder(bundle: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    other = write_bundle(tmp_path / "other")
    assert torch.equal(torch.random.get_rng_state(), before)
    one, two = (torch.load(folder / "models/model.pt", weights_only=True) for folder in (bundle, other))
    assert list(one) == list(two)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_it_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="is not empty, and nothing is overwritten"):
        write_bundle(tmp_path)
    with pytest.raises(BundleError, match="is a file"):
        write_bundle(tmp_path / "notes.txt")
    with pytest.raises(BundleError, match="cannot be written"):
        write_bundle(tmp_path / "notes.txt" / "deeper")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_command_writes_it_and_says_how_to_train(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bundle", str(tmp_path / "new")])
    assert done.exit_code == 0, done.output
    assert "python -m monai.bundle run --config_file configs/train.json" in done.output
    done = CliRunner().invoke(app, ["bundle", str(tmp_path / "other"), "--json"])
    assert json.loads(done.output) == {"bundle": str(tmp_path / "other")}


def test_its_metadata_fits_the_schema(bundle: Path, tmp_path: Path) -> None:
    """`verify_metadata` uses a schema that is already in the file that it would download to."""
    schema = tmp_path / "schema.json"
    schema.write_text(SCHEMA.read_text())
    known = {"filepath": str(schema), "hash_val": sha256(schema.read_bytes()).hexdigest(), "hash_type": "sha256"}
    verify_metadata(meta_file=str(bundle / "configs/metadata.json"), **known)
    content = metadata_of(bundle)
    assert content["version"] in content["changelog"]
    del content["network_data_format"]["outputs"]["pred"]["dtype"]
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="Failed validating"):
        verify_metadata(meta_file=str(broken), **known)


@pytest.mark.parametrize("config", ["train", "inference"])
def test_its_network_fits_the_metadata(bundle: Path, config: str) -> None:
    files = {"meta_file": str(bundle / "configs/metadata.json"), "config_file": str(bundle / f"configs/{config}.json")}
    verify_net_in_out("network_def", **files)
    with pytest.raises(ValueError, match="output channel number"):
        verify_net_in_out("network_def", **files, **{"network_def#out_channels": 7})


def test_monai_loads_it_without_data(bundle: Path) -> None:
    saved = torch.load(bundle / "models/model.pt", weights_only=True)
    for workflow in ("train", "inference"):
        network = load(bundle.name, bundle_dir=str(bundle.parent), workflow_type=workflow)
        assert all(torch.equal(network.state_dict()[name], saved[name]) for name in saved)


def test_its_configurations_agree(bundle: Path) -> None:
    """The network, the patches and the steps before it are written in two files each."""
    train, inference = (
        ConfigParser.load_config_file(bundle / f"configs/{name}.json") for name in ("train", "inference")
    )
    for key in ("patch_size", "spacing", "device", "amp"):
        assert train[key] == inference[key]
    same = ("_target_", "spatial_dims", "channels", "strides", "num_res_units", "norm")
    assert [train["network_def"][key] for key in same] == [inference["network_def"][key] for key in same]
    steps = [step["_target_"] for step in inference["preprocessing"]["transforms"]]
    trained = [step["_target_"] for step in train["train"]["deterministic_transforms"]]
    assert steps == [name for name in trained if "CheckLabels" not in name]


def test_it_has_the_properties_that_monai_checks(bundle: Path, tmp_path: Path) -> None:
    task = make_task(tmp_path)
    options = {"dataset_dir": str(task), "num_workers": 0, "bundle_root": str(bundle), "logging_file": False}
    for name, kind in (("train", "train"), ("inference", "infer")):
        images = {"images": str(task / "imagesTr")} if kind == "infer" else {}
        config = str(bundle / f"configs/{name}.json")
        workflow = create_workflow(config_file=config, workflow_type=kind, **options, **images)
        assert workflow.check_properties() == []


def test_a_path_must_not_leave_the_bundle(bundle: Path, tmp_path: Path) -> None:
    check_paths(bundle, ckpt_dir=bundle / "models", output_dir=bundle / "a" / ".." / "eval")
    with pytest.raises(BundleError, match=r"ckpt_dir is .*, which is outside of the bundle in"):
        check_paths(bundle, ckpt_dir=bundle / ".." / "models")
    (bundle / "eval").mkdir(exist_ok=True)
    link = tmp_path / "root"
    link.symlink_to(bundle)
    check_paths(link, output_dir=bundle / "eval")
    with pytest.raises(BundleError, match="there is no bundle in"):
        check_paths(tmp_path)


def test_the_metadata_follows_the_task(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    before = (bundle / "configs/metadata.json").read_text()
    describe_task(bundle, TaskInfo(("MRI",), ("background", "Anterior", "Posterior")))
    assert (bundle / "configs/metadata.json").read_text() == before
    describe_task(bundle, TaskInfo(("T1", "T2"), ("background", "tumour")))
    data_format = metadata_of(bundle)["network_data_format"]
    assert data_format["inputs"]["image"]["num_channels"] == 2
    assert data_format["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "tumour"}
    assert task_info(tmp_path / "nowhere", data_format) == TaskInfo(("T1", "T2"), ("background", "tumour"))
    verify_net_in_out(
        "network_def",
        meta_file=str(bundle / "configs/metadata.json"),
        config_file=str(bundle / "configs/inference.json"),
    )


def test_random_numbers_of_an_epoch_depend_on_the_epoch_alone() -> None:
    def random_numbers(epochs: list[int]) -> dict[int, tuple[float, ...]]:
        noise = RandGaussianNoise(prob=1.0)
        numbers = {}
        engine = Engine(lambda *_: None)
        EpochSeeds(3, Dataset([1], noise)).attach(engine)
        for epoch in epochs:
            engine.state.epoch = epoch
            engine.fire_event(Events.EPOCH_STARTED)
            numbers[epoch] = (float(torch.rand(1)), float(np.random.rand()), float(noise.R.rand()))  # noqa: NPY002
        return numbers

    once, again = random_numbers([1, 2, 3]), random_numbers([3])
    assert once[3] == again[3]
    assert len({value for values in once.values() for value in values}) == 9


def test_the_best_score_survives_a_restart(tmp_path: Path) -> None:
    network = torch.nn.Linear(1, 1)

    def saver() -> tuple[BestModelSaver, Engine]:
        engine = Engine(lambda *_: None)
        engine.state.key_metric_name = "dice"
        engine.state.best_metric, engine.state.best_metric_epoch = -1.0, -1
        handler = BestModelSaver(str(tmp_path), {"model": network})
        handler.attach(engine)
        return handler, engine

    def validate(handler: BestModelSaver, engine: Engine, dice: float) -> None:
        with torch.no_grad():
            network.weight.fill_(dice)
        engine.state.metrics["dice"] = dice
        handler.metrics_completed(engine)

    first, engine = saver()
    engine.state.best_metric, engine.state.best_metric_epoch = 0.5, 4
    validate(first, engine, 0.5)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second, engine = saver()
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (engine.state.best_metric, engine.state.best_metric_epoch) == (0.5, 4)
    validate(second, engine, 0.25)
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item() == 0.5
    validate(second, engine, 0.75)
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item() == 0.75


def test_the_last_checkpoint_is_the_one_written_last(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no checkpoint to resume from"):
        last_checkpoint(tmp_path)
    for age, epoch in enumerate((9, 2)):  # a new run's second epoch, after an old run's ninth
        path = tmp_path / f"checkpoint_epoch={epoch}.pt"
        path.touch()
        os.utime(path, (1000 + age, 1000 + age))
    assert last_checkpoint(tmp_path).endswith("checkpoint_epoch=2.pt")


def test_the_state_leaves_out_absent_parts() -> None:
    trainer = SimpleNamespace(network=1, optimizer=2)
    assert list(training_state(trainer, 3, best=None)) == ["network", "optimizer", "lr_scheduler", "trainer"]
