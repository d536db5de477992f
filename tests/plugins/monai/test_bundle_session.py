"""The bundle by the commands of its README: a whole session, and two processes by torchrun."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bundle_runs import as_arguments, monai, saved_state
from decathlon_task import AFFINE, TASK, make_task, task_dir

# Each command starts an interpreter that imports MONAI, which takes long on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

TRAIN = ("run", "--config_file", "configs/train.json")
NETWORK = as_arguments()[as_arguments().index("--patch_size") :]  # the same for every command
EXPORT = ("network_def", "--ckpt_file", "models/model.pt", "--meta_file", "configs/metadata.json")


def write_by_command(folder: Path) -> Path:
    command = "from layertune.cli import main; main()"
    subprocess.run([sys.executable, "-c", command, "monai", "bundle", str(folder)], check=True, timeout=300)
    return folder


def kill_in_second_epoch(bundle: Path, *arguments: str) -> None:
    """Start a training whose process is killed in its third iteration of four."""
    kill = "engine.add_event_handler(ignite.engine.Events.ITERATION_COMPLETED(once=3), lambda: os.kill(os.getpid(), 9))"
    overlay = {
        "+imports": ["$import os", "$import ignite", "$import types"],
        "+train#handlers": [f"$types.SimpleNamespace(attach=lambda engine: {kill})"],
    }
    (bundle / "kill.json").write_text(json.dumps(overlay))
    monai(bundle, "run", "--config_file", "['configs/train.json','kill.json']", *arguments, succeeds=False)
    assert [path.name for path in (bundle / "models").glob("checkpoint*")] == ["checkpoint_epoch=1.pt"]


def test_a_session_of_a_new_user(tmp_path: Path) -> None:
    data = task_dir(tmp_path / "data")
    bundle = write_by_command(tmp_path / "metalr_unet")
    options = ["--data_dir", str(data), "--task", TASK]
    kill_in_second_epoch(bundle, *options, *as_arguments())
    text = monai(bundle, *TRAIN, *options, *as_arguments(resume=True))
    assert "Restored all variables from models/checkpoint_epoch=1.pt" in text
    assert saved_state(bundle)["trainer"]["iteration"] == 4

    evaluate = "['configs/train.json','configs/evaluate.json']"
    text = monai(bundle, "run", "--config_file", evaluate, *options, *as_arguments())
    assert "val_mean_dice" in text
    assert {"metrics.csv", "val_mean_dice_raw.csv"} <= {path.name for path in (bundle / "eval").iterdir()}

    images = make_task(tmp_path / "unseen", cases=2, size=(21, 18, 23)) / "imagesTr"
    monai(
        bundle,
        "run",
        "--config_file",
        "configs/inference.json",
        "--images",
        str(images),
        "--num_workers",
        "0",
        *NETWORK,
    )
    for number in range(2):
        predicted, image = (
            nib.load(bundle / f"eval/case_{number}_seg.nii.gz"),
            nib.load(images / f"case_{number}.nii.gz"),
        )
        np.testing.assert_allclose(predicted.affine, AFFINE, atol=1e-4)
        assert predicted.shape == image.shape == (21, 18, 23)
        assert predicted.get_data_dtype() == np.uint8
        assert set(np.unique(np.asarray(predicted.dataobj))) <= {0, 1, 2}

    for name, file in (("ckpt_export", "model.ts"), ("onnx_export", "model.onnx")):
        monai(
            bundle,
            name,
            *EXPORT,
            "--filepath",
            f"models/{file}",
            "--config_file",
            "configs/inference.json",
            *NETWORK[2:],
        )
        assert (bundle / "models" / file).stat().st_size > 1000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch advises another format than MONAI's command writes
        exported = torch.jit.load(bundle / "models/model.ts")
    assert exported(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 3, 16, 16, 16)


def test_two_processes_learn_the_same_rates(tmp_path: Path) -> None:
    """They run by torchrun and gloo. Each process writes the rates that it has learned."""
    data = make_task(tmp_path / "data", cases=8).parent
    bundle = write_by_command(tmp_path / "metalr_unet")
    # One more configuration, like one that a user adds.
    (bundle / "configs/report.json").write_text(
        json.dumps(
            {
                "finalize": [
                    "$import json",
                    "$open(f'rates{dist.get_rank()}.json', 'w').write(json.dumps(@train#handlers#0.profile.scales))",
                    "$torch.save(@network.module.state_dict(), f'weights{dist.get_rank()}.pt')",
                    "$dist.destroy_process_group()",
                ]
            }
        )
    )
    files = "['configs/train.json','configs/multi_gpu_train.json','configs/report.json']"
    arguments = as_arguments(data_dir=str(data), hyper_lr=0.1)
    text = monai(bundle, "run", "--config_file", files, *arguments, ranks=2)
    first, second = (json.loads((bundle / f"rates{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert [len(factors) for factors in first] == [7, 7]
    assert len({factor for factors in first for factor in factors}) == 2, "a factor is learned for all layers"
    one, two = (torch.load(bundle / f"weights{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one if "running" not in name and "batches" not in name)
    assert saved_state(bundle)["trainer"]["iteration"] == 2, "four cases, two a batch, two processes: one step an epoch"
    assert "val_mean_dice" in text

    files = "['configs/train.json','configs/evaluate.json','configs/multi_gpu_evaluate.json']"
    assert "val_mean_dice" in monai(bundle, "run", "--config_file", files, *arguments, ranks=2)
    assert (bundle / "eval/metrics.csv").is_file()
