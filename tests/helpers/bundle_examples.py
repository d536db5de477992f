"""Small bundles in three styles of other people, for `layertune monai adapt`."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.networks.nets import UNet

__all__ = ["STYLES", "write_bundle"]

DATA = "$[{'image': torch.randn(1, 16, 16), 'label': (torch.randn(1, 16, 16) > 0).float()} for _ in range(4)]"
NETWORK = {
    "_target_": "UNet",
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 2,
    "channels": [4, 8],
    "strides": [2],
}
LOSS = {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True}
STATS = {"_target_": "StatsHandler", "output_transform": "$monai.handlers.from_engine(['loss'], first=True)"}
FLIP = {"_target_": "RandFlipd", "keys": ["image", "label"], "prob": 0.5}
LOGGING = """[loggers]
keys=root
[handlers]
keys=console
[formatters]
keys=full
[logger_root]
level=INFO
handlers=console
[handler_console]
class=StreamHandler
level=INFO
formatter=full
args=(sys.stdout,)
[formatter_full]
format=%(name)s - %(message)s
"""


def saver(folder: str, network: str) -> dict[str, Any]:
    return {
        "_target_": "CheckpointSaver",
        "save_dir": folder,
        "save_dict": {"model": network},
        "save_final": True,
        "final_filename": "model.pt",
    }


def trainer(**arguments: Any) -> dict[str, Any]:
    return {"_target_": "SupervisedTrainer", "max_epochs": 2, "device": "@device", "amp": False, **arguments}


def zoo() -> dict[str, Any]:
    """The style of most of the model zoo: JSON, everything below ``train``, handlers by reference."""
    return {
        "bundle_root": ".",
        "ckpt_dir": "$@bundle_root + '/models'",
        "dataset_dir": "../data",
        "device": "$torch.device('cpu')",
        "network_def": NETWORK,
        "network": "$@network_def.to(@device)",
        "loss": LOSS,
        "optimizer": {"_target_": "Novograd", "params": "$@network.parameters()", "lr": 0.01},
        "train": {
            "dataset": {"_target_": "CacheDataset", "data": DATA, "transform": FLIP, "progress": False},
            "dataloader": {"_target_": "DataLoader", "dataset": "@train#dataset", "batch_size": 2, "shuffle": True},
            "inferer": {"_target_": "SimpleInferer"},
            "handlers": [STATS, saver("@ckpt_dir", "@network")],
            "trainer": trainer(
                train_data_loader="@train#dataloader",
                network="@network",
                loss_function="@loss",
                optimizer="@optimizer",
                inferer="@train#inferer",
                train_handlers="@train#handlers",
            ),
        },
        "initialize": ["$monai.utils.set_determinism(seed=123)"],
        "run": ["$@train#trainer.run()"],
    }


def flat() -> dict[str, Any]:
    """The style of the zoo's templates: names of its own at the top, and handlers by an expression."""
    return {
        "bundle_root": ".",
        "device": "$torch.device('cpu')",
        "net": NETWORK,
        "data": {"_target_": "Dataset", "data": DATA},
        "loader": {"_target_": "ThreadDataLoader", "dataset": "@data", "batch_size": 2, "num_workers": 0},
        "opt": {"_target_": "torch.optim.AdamW", "params": "$@net.parameters()", "lr": 0.01},
        "handlers": [STATS],
        "saving": [saver("$@bundle_root + '/out'", "@net")],
        "engine": trainer(
            train_data_loader="@loader",
            network="@net",
            loss_function=LOSS,
            optimizer="@opt",
            train_handlers="$@handlers + @saving",
        ),
        "run": ["$monai.utils.set_determinism(seed=123)", "$@engine.run()"],
    }


def inline() -> dict[str, Any]:
    """A style with everything inside the trainer, and without a root."""
    loader = {"_target_": "DataLoader", "dataset": {"_target_": "Dataset", "data": DATA}, "batch_size": 2}
    optimizer = {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.05, "momentum": 0.9}
    return {
        "device": "$torch.device('cpu')",
        "network": NETWORK,
        "train": {
            "trainer": trainer(
                train_data_loader=loader,
                network="@network",
                loss_function=LOSS,
                optimizer=optimizer,
                train_handlers=[STATS, saver("models", "@network")],
            )
        },
        "initialize": ["$monai.utils.set_determinism(seed=123)"],
        "run": ["$@train#trainer.run()"],
    }


STYLES = {"zoo": (zoo, "json"), "flat": (flat, "yaml"), "inline": (inline, "yml")}


def write_bundle(folder: Path, style: str, **changes: Any) -> Path:
    """Write a bundle with weights.

    Args:
        folder: The folder of the bundle, which must not exist.
        style: A name of ``STYLES``.
        **changes: Entries of the configuration's top level. ``None`` removes an entry.
    """
    make, suffix = STYLES[style]
    content = {key: value for key, value in (make() | changes).items() if value is not None}
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    written = json.dumps(content) if suffix == "json" else yaml.safe_dump(content)
    (folder / "configs" / f"train.{suffix}").write_text(written, encoding="utf-8")
    (folder / "configs" / "logging.conf").write_text(LOGGING, encoding="utf-8")
    torch.manual_seed(1)
    arguments = {key: value for key, value in NETWORK.items() if key != "_target_"}
    torch.save(UNet(**arguments).state_dict(), folder / "models" / "model.pt")
    return folder
