"""Trainers about gammas: norm-only training, the penalty, and the three phases of Network Alchemy."""

from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from layertune import AlchemyError, Convergence, ModelError, gammas
from layertune.hosts.alchemy_settings import AlchemySettings
from layertune_nnunet import (
    AlchemyMixin,
    MetaLRMixin,
    nnUNetTrainerAlchemy,
    nnUNetTrainerAlchemyMetaLR,
    nnUNetTrainerAlchemyMetaLRStreaming,
    nnUNetTrainerBNScale,
    nnUNetTrainerNormOnly,
)
from nnunet_runs import STEPS, Killed, architecture, configuration, kill, make, plans, resume, same, train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nnunet")]

SMALL = "2d"
ALCHEMY: dict[str, Any] = {"identification": 2, "epochs": 4, "quantile": 0.05}


def built() -> Any:
    """Return a trainer of nnU-Net with the initial weights that all trainers here start with."""
    made = make(nnUNetTrainer, SMALL)
    made.initialize()
    return made


def copy_of(trainer: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.network.named_parameters()}


def moved(trainer: Any, start: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in copy_of(trainer).items() if not torch.equal(tensor, start[name])}


def of_norms(network: nn.Module) -> set[str]:
    norms = [module for module in network.modules() if isinstance(module, nn.InstanceNorm2d)]
    own = {id(parameter) for norm in norms for parameter in norm.parameters()}
    return {name for name, parameter in network.named_parameters() if id(parameter) in own}


def log(trainer: Any) -> str:
    return Path(trainer.log_file).read_text()


def test_only_norms_change_and_the_head_where_it_is_asked_for() -> None:
    start = built()
    trained = train(nnUNetTrainerNormOnly, SMALL, epochs=1)
    assert moved(trained, copy_of(start)) == of_norms(start.network)
    assert all(p.grad is None for name, p in trained.network.named_parameters() if name not in of_norms(start.network))
    assert "Norms: gammas from" in log(trained)
    made = make(nnUNetTrainerNormOnly, SMALL, head=True, biases=True)
    made.initialize()
    training = {name for name, p in made.network.named_parameters() if p.requires_grad}
    head = {name for name in copy_of(start) if "seg_layers" in name}
    assert of_norms(start.network) | head <= training
    assert {name for name in training if name.endswith("conv.bias")}
    assert not {name for name in training if name.endswith("conv.weight")}


def test_a_penalty_of_weight_0_trains_as_nnunet() -> None:
    stock = train(nnUNetTrainer, SMALL, epochs=1)
    assert same(train(nnUNetTrainerBNScale, SMALL, epochs=1, lam=0.0), stock)
    assert not same(train(nnUNetTrainerBNScale, SMALL, epochs=1, lam=1e-2), stock)


def test_the_penalty_is_in_the_training_loss_only() -> None:
    made = make(nnUNetTrainerBNScale, SMALL, lam=10.0)
    made.on_train_start()
    plain = made.loss
    batch = next(made.dataloader_train)
    with torch.no_grad():
        expected = plain(made.network(batch["data"]), batch["target"]).item()
        assert made.validation_step(dict(batch))["loss"] == pytest.approx(expected)
    # All gammas are 1: lambda (-alpha 1 + beta 0).
    assert made.train_step(batch)["loss"] == pytest.approx(expected - 1.0, abs=1e-5)
    assert made.loss is plain


def test_phases_follow_each_other_in_one_run() -> None:
    start = copy_of(built())
    trainer = make(nnUNetTrainerAlchemy, SMALL, **ALCHEMY)
    trainer.on_train_start()
    before: dict[str, Tensor] = {}
    phases = []
    for _ in range(trainer.num_epochs):
        before = copy_of(trainer)
        trainer.on_epoch_start()
        phases.append(trainer.alchemy.phase)
        if len(phases) == 3:
            changed = moved(trainer, before)
            redundant = trainer.alchemy.redundant
            ours = {place for name in redundant.channels for place in (redundant.pairs[name].operation, name)}
            assert changed
            assert {name.rpartition(".")[0] for name in changed} == ours
        else:
            assert not moved(trainer, before)
        trainer.on_train_epoch_start()
        trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train))])
        with torch.no_grad():
            trainer.on_validation_epoch_start()
            trainer.on_validation_epoch_end([trainer.validation_step(next(trainer.dataloader_val))])
        trainer.on_epoch_end()
        if phases[-1] == "identification":
            assert moved(trainer, start) == of_norms(trainer.network)
    assert phases == ["identification"] * 2 + ["maximisation"] * 2
    assert all(p.requires_grad for p in trainer.network.parameters())
    assert len(moved(trainer, before)) > len(of_norms(trainer.network))
    count, total = redundant.count, redundant.total
    assert 0 < count < total
    assert f"{count} of {total} kernels" in log(trainer)
    assert "Network Alchemy, identification: gammas" in log(trainer)
    assert "Network Alchemy, maximisation: gammas" in log(trainer)


@pytest.mark.parametrize(
    "trainer", [nnUNetTrainerAlchemy, nnUNetTrainerAlchemyMetaLR, nnUNetTrainerAlchemyMetaLRStreaming]
)
def test_a_training_killed_in_any_phase_resumes_exactly(trainer: type) -> None:
    whole = train(trainer, SMALL, **ALCHEMY)
    for stop_at in ((1, 1), (2, 0), (3, 1)):
        rmtree(whole.output_folder)
        kill(trainer, stop_at, setting=SMALL, **ALCHEMY)
        kept = torch.load(Path(whole.output_folder) / "checkpoint_latest.pth", weights_only=False)
        assert kept["current_epoch"] == stop_at[0]
        continued = resume(trainer, setting=SMALL, **ALCHEMY)
        assert same(continued, whole), stop_at
        assert getattr(continued, "profile", None) == getattr(whole, "profile", None)
        assert continued.alchemy.history == whole.alchemy.history
        assert continued.alchemy.redundant.channels == whole.alchemy.redundant.channels


def test_rates_are_learned_in_the_last_phase_only() -> None:
    plain = train(nnUNetTrainerAlchemy, SMALL, **ALCHEMY)
    assert same(train(nnUNetTrainerAlchemyMetaLR, SMALL, **ALCHEMY, hyper_lr=0.0), plain)
    learned = train(nnUNetTrainerAlchemyMetaLR, SMALL, **ALCHEMY)
    last = ALCHEMY["epochs"] - ALCHEMY["identification"]
    assert learned.profile.steps == tuple(range(1, last * STEPS + 1))
    assert log(learned).count("Learning rates by layer: ") == last
    assert len(set(learned.profile.scales[-1])) == len(learned.layers)
    assert not same(learned, plain)
    swapped = type("Swapped", (AlchemyMixin, MetaLRMixin, nnUNetTrainer), {})
    assert same(train(swapped, SMALL, **ALCHEMY, hyper_lr=0.0), plain)


def test_meta_batches_have_the_loss_without_the_penalty() -> None:
    trainer = make(nnUNetTrainerAlchemyMetaLR, SMALL, **ALCHEMY)
    trainer.on_train_start()
    trainer.alchemy.phase = "maximisation"
    trainer.on_epoch_start()
    asked: list[bool] = []
    penalty = trainer.penalty
    trainer.penalty = lambda: asked.append(True) or penalty()
    trainer.train_step(next(trainer.dataloader_train))
    assert trainer.metalr.history
    assert asked == [True]


def test_kernels_are_judged_by_the_pretrained_weights(tmp_path: Path) -> None:
    source = built()
    norm = source.network.encoder.stages[0][0].convs[0].norm
    with torch.no_grad():
        norm.weight[1] = 1e-4
    source.save_checkpoint(str(tmp_path / "pretrained.pth"))
    tuned = make(nnUNetTrainerAlchemy, SMALL, identification=1, base_lr=1e-6)
    tuned.initialize()
    load_pretrained_weights(tuned.network, tmp_path / "pretrained.pth")
    with pytest.raises(Killed):
        stop(tuned, (1, 0))
    assert list(tuned.alchemy.redundant.channels.values()) == [(1,)]
    assert gammas(tuned.network)[next(iter(tuned.alchemy.redundant.channels))][1] == 1


def stop(trainer: Any, at: tuple[int, int]) -> None:
    type(trainer).stop_at = at
    trainer.run_training()


def test_after_a_refused_threshold_the_training_goes_on_with_another() -> None:
    values = {"identification": 1, "threshold": 5.0}
    with pytest.raises(AlchemyError, match=r"takes all kernels of 5 layers .*_thr0p01.*checkpoint_latest.*--c"):
        train(nnUNetTrainerAlchemy, SMALL, **values)
    continued = resume(nnUNetTrainerAlchemy, setting=SMALL, identification=1, quantile=0.05)
    assert continued.alchemy.phase == "maximisation"
    assert len(continued.alchemy.history) == 1
    assert continued.alchemy.redundant.count > 0


def test_figures_are_drawn_beside_nnunets_own() -> None:
    trainer = make(nnUNetTrainerAlchemy, SMALL, identification=1, quantile=0.05, draws=True)
    trainer.run_training()
    assert (Path(trainer.output_folder) / "gammas.png").stat().st_size > 0
    with torch.no_grad():
        next(p for name, p in trainer.network.named_parameters() if "norm.weight" in name)[0] = float("nan")
    trainer.plot_gammas()
    assert "no figure of the gammas" in log(trainer)


def test_stock_nnunet_goes_on_from_a_checkpoint() -> None:
    trained = train(nnUNetTrainerAlchemy, SMALL, identification=1, quantile=0.05)
    file = str(Path(trained.output_folder) / "checkpoint_final.pth")
    assert torch.load(file, weights_only=False)["trainer_name"] == "nnUNetTrainer"
    trained.load_checkpoint(file)  # as `--val_best` does, after the training
    stock = make(nnUNetTrainer, SMALL)
    stock.load_checkpoint(file)
    assert same(stock, trained)
    stock.save_checkpoint(file)
    assert make_and_load(nnUNetTrainerBNScale, file)


def make_and_load(trainer: type, file: str, **values: Any) -> Any:
    made = make(trainer, SMALL, **values)
    made.load_checkpoint(file)
    return made


def test_mistakes_are_refused_before_training() -> None:
    stock = train(nnUNetTrainer, SMALL, epochs=1)
    with pytest.raises(AlchemyError, match=r"no phase of Network Alchemy.*-pretrained_weights"):
        make_and_load(nnUNetTrainerAlchemy, str(Path(stock.output_folder) / "checkpoint_final.pth"))
    with pytest.raises(AlchemyError, match="50 epochs leaves none of the 2"):
        make(nnUNetTrainerAlchemy, SMALL).on_train_start()


@pytest.mark.parametrize(
    ("trainer", "values", "expected"),
    [
        (nnUNetTrainerAlchemy, {"threshold": 0.1, "quantile": 0.1}, r"either a threshold .*: _thr0p05, _q0p1"),
        (nnUNetTrainerAlchemy, {"quantile": 2.0}, "quantile .* 2.0.*: _q0p1"),
        (nnUNetTrainerAlchemyMetaLR, {"beta": -1.0}, "beta .* -1.0.*: _.*beta1"),
        (nnUNetTrainerBNScale, {"lam": -1.0}, "weight .* -1.0.*: _lam1em4"),
        (nnUNetTrainerBNScale, {"alpha": float("nan")}, "alpha .* nan.*_alpha0p1"),
    ],
)
def test_settings_that_do_not_fit_are_refused_when_the_trainer_is_made(
    trainer: type, values: dict[str, Any], expected: str
) -> None:
    with pytest.raises(AlchemyError, match=expected):
        make(trainer, SMALL, **values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {"identification": Convergence(limit=50), "threshold": 0.05, "weight": 1e-4}),
        ({"patience": 3}, {"identification": Convergence(patience=3, limit=50)}),
        ({"identification": 5, "quantile": 0.1}, {"identification": Convergence(limit=5), "quantile": 0.1}),
        ({"lam": 0.5, "absolute": True}, {"weight": 0.5, "absolute": True}),
    ],
)
def test_settings_that_are_not_given_are_the_cores(values: dict[str, Any], expected: dict[str, Any]) -> None:
    trainer = make(nnUNetTrainerAlchemy, SMALL, **values)
    trainer.initialize()
    assert trainer._session.settings == AlchemySettings(**{"identification": Convergence(limit=50), **expected})


@pytest.mark.parametrize("trainer", [nnUNetTrainerNormOnly, nnUNetTrainerBNScale, nnUNetTrainerAlchemy])
def test_a_network_without_gammas_is_refused(trainer: type) -> None:
    bare = plans()
    built_of = architecture(2)
    built_of["arch_kwargs"]["norm_op_kwargs"] = {"eps": 1e-5, "affine": False}
    bare["configurations"][SMALL] = configuration(2, architecture=built_of)
    with pytest.raises(ModelError, match="none of the 5 norms of PlainConvUNet has a gamma"):
        make(trainer, SMALL, plans=bare).initialize()
