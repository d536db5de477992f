"""Trainers that freeze layers: what moves, what does not, and what the log says of it."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam
from torch.nn.parallel import DistributedDataParallel

from layertune import PolicyError, UNetScheme
from layertune.policies.policies import Policy
from layertune_nnunet import (
    FixedLayersMixin,
    LastLayerMixin,
    nnUNetTrainerBiDirectional,
    nnUNetTrainerLastLayer,
    nnUNetTrainerLayerWise,
    nnUNetTrainerNormOnly,
)
from nnunet_runs import kill, make, resume, same, seed, train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nnunet")]

NEVER_TRAINED = "WARNING: frozen layers keep the random weights that the network was built with: all frozen layers"


class Expanding(FixedLayersMixin, nnUNetTrainer):
    def policy(self) -> Policy:
        return UNetScheme("expanding")


class LastLayerAdam(LastLayerMixin, nnUNetTrainerAdam):
    pass


class LoadsItsEncoder(nnUNetTrainer):
    """Loads weights while it is initialized, as the trainers for pre-trained encoders in nnU-Net's next release do."""

    def configure_optimizers(self) -> Any:
        with torch.no_grad():
            for parameter in self.network.encoder.parameters():
                parameter += 1
        return super().configure_optimizers()


def moved_layers(trainer: Any) -> set[int]:
    """Return the depths of the layers whose weights differ from the initial ones."""
    before = make(nnUNetTrainer, trainer.configuration_name)
    before.initialize()
    start = dict(before.network.named_parameters())
    moved = {name for name, p in trainer.network.named_parameters() if not torch.equal(p, start[name])}
    return {layer.depth for layer in trainer.layers if moved & set(layer.parameters)}


@pytest.mark.parametrize(
    ("trainer", "values", "tuned"),
    [
        (nnUNetTrainerBiDirectional, {"m": 2, "n": 4}, {1, 5, 6}),
        (nnUNetTrainerBiDirectional, {"m": 2, "n": 3, "depth": "I2"}, {1, 4}),
        (nnUNetTrainerLayerWise, {"first": 4}, {4, 5, 6}),
        (nnUNetTrainerLastLayer, {}, {6}),
        (LastLayerAdam, {}, {6}),
        (Expanding, {}, {4, 5, 6}),
    ],
)
def test_frozen_layers_do_not_move(trainer: type, values: dict[str, Any], tuned: set[int]) -> None:
    trained = train(trainer, "2d", epochs=1, **values)
    assert moved_layers(trained) == tuned
    frozen = {name for name, p in trained.network.named_parameters() if not p.requires_grad}
    assert frozen == {name for layer in trained.layers if layer.depth not in tuned for name in layer.parameters}


def test_tuning_all_layers_trains_as_nnunet() -> None:
    with pytest.warns(UserWarning, match="freezes none"):
        trained = train(nnUNetTrainerLayerWise, "2d", first=1)
    assert same(trained, train(nnUNetTrainer, "2d"))


def test_a_killed_training_resumes_exactly() -> None:
    kill(nnUNetTrainerBiDirectional, (1, 1), m=2, n=4)
    continued = resume(nnUNetTrainerBiDirectional, m=2, n=4)
    assert same(continued, train(nnUNetTrainerBiDirectional, m=2, n=4))


def log_of(trainer: Any) -> str:
    return Path(trainer.log_file).read_text()


def start_from(file: Path, trainer: type) -> Any:
    """Return a trainer that is about to train, with weights that are loaded as by ``-pretrained_weights``."""
    tuned = make(trainer)
    tuned.initialize()
    load_pretrained_weights(tuned.network, file)
    tuned.on_train_start()
    return tuned


def test_frozen_layers_that_were_never_trained_are_named(tmp_path: Path) -> None:
    started = make(nnUNetTrainerLastLayer)
    started.on_train_start()
    assert NEVER_TRAINED in log_of(started)
    source = make(nnUNetTrainer)
    seed(1)  # other weights than those that a trainer starts with
    source.initialize()
    source.save_checkpoint(str(tmp_path / "pretrained.pth"))
    log = log_of(start_from(tmp_path / "pretrained.pth", nnUNetTrainerLastLayer))
    assert "WARNING" not in log
    assert "1 of 6 layers are tuned: decoder.seg_layers" in log
    # nnU-Net loads no segmentation layers, and this trainer freezes them.
    log = log_of(start_from(tmp_path / "pretrained.pth", nnUNetTrainerNormOnly))
    assert "random weights that the network was built with: decoder.seg_layers;" in log


def test_weights_that_a_trainer_loads_by_itself_are_not_called_random() -> None:
    trainer = make(type("Both", (LastLayerMixin, LoadsItsEncoder), {}))
    trainer.on_train_start()
    decoder = "decoder.stages.0.convs.0.conv, decoder.stages.1.convs.0.conv"
    assert f"random weights that the network was built with: {decoder};" in log_of(trainer)


def test_frozen_layers_that_were_never_trained_are_named_under_ddp_too(tmp_path: Path) -> None:
    trainer = make(nnUNetTrainerLastLayer)  # before there is a group, as nnU-Net takes its processes to have GPUs
    trainer.is_ddp = True
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    try:
        with patch("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.DDP", lambda net, **_: DistributedDataParallel(net)):
            trainer.on_train_start()
    finally:
        dist.destroy_process_group()
    assert NEVER_TRAINED in log_of(trainer)


@pytest.mark.parametrize(
    ("trainer", "values", "message"),
    [
        (
            nnUNetTrainerBiDirectional,
            {},
            r"nnUNetTrainerBiDirectional_m2_n4. This network has the depths 1 enc.*, 6 dec",
        ),
        (nnUNetTrainerBiDirectional, {"m": 3}, "nnUNetTrainerBiDirectional_m2_n4"),
        (nnUNetTrainerBiDirectional, {"m": 3, "n": 2}, "1 <= m <= n"),
        (nnUNetTrainerBiDirectional, {"m": 3, "n": 6}, "n must be below d = 6"),
        (nnUNetTrainerLayerWise, {}, "nnUNetTrainerLayerWise_first4"),
        (nnUNetTrainerLayerWise, {"first": 9}, "depths 1 to 6"),
    ],
)
def test_depths_that_are_missing_or_do_not_fit(trainer: type, values: dict[str, int], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        make(trainer, **values).initialize()


def test_a_mixin_without_a_policy_is_refused() -> None:
    mixed = type("Mine", (FixedLayersMixin, nnUNetTrainer), {})
    with pytest.raises(NotImplementedError, match="Mine has to say which layers it tunes"):
        make(mixed).initialize()
