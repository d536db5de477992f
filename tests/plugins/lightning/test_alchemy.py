"""Network Alchemy in Lightning compared with a plain loop: same weights, same phases, resumed in any of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader

from layertune import Alchemy, AlchemyError, Convergence, GammaPenalty, ModelError, OptimizerError
from layertune_lightning import AlchemyCallback, GammaPenaltyCallback, MetaLRCallback
from lightning_runs import (
    EPOCHS,
    LEARN,
    META,
    SIZE,
    STEPS,
    Adversarial,
    Batch,
    Module,
    assert_equal,
    batches,
    fit,
    samples,
    weights,
)

PHASES: dict[str, Any] = {
    "quantile": 0.3,
    "identification": Convergence(limit=2),
    "maximisation": Convergence(patience=2, limit=3),
}
WEIGHT = 0.5


class Validated(Module):
    """A module that logs a validation loss, without dropout, whose random state Lightning does not save."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.net[3].p = 0.0
        nn.init.normal_(self.net[1].weight, 0.5, generator=torch.Generator().manual_seed(2))

    def val_dataloader(self) -> Any:
        return DataLoader(samples(seed=5, size=SIZE), batch_size=SIZE)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        self.log("val_loss", mse_loss(self(batch[0]), batch[1]), batch_size=SIZE)


def validation_loss(module: Module) -> float:
    module.eval()
    with torch.no_grad():
        x, y = batches(seed=5, size=SIZE)[0]
        value = mse_loss(module(x), y).item()
    module.train()
    return value


def by_hand(
    module: Module,
    epochs: int,
    *,
    alchemy: bool = True,
    accumulate: int = 1,
    clip: Callable[[list[Tensor]], Any] = lambda _: None,
) -> Alchemy | None:
    """Train in a plain loop, with the phases or with the penalty alone."""
    torch.manual_seed(3)
    optimizer = module.configure_optimizers()
    penalty: Any = GammaPenalty(module, weight=WEIGHT)
    phases = Alchemy(module, optimizer, torch.zeros(2, 4), penalty=penalty, **PHASES) if alchemy else None
    module.train()
    for _ in range(epochs):
        for number, (x, y) in enumerate(batches()):
            if number % accumulate == 0:
                optimizer.zero_grad()
            loss = mse_loss(module(x), y) / accumulate
            last = (number + 1) % accumulate == 0 or number + 1 == STEPS
            if last:
                loss = loss + (phases.penalty() if phases else penalty())
            loss.backward()
            if last:
                clip([p for p in module.parameters() if p.grad is not None])
                optimizer.step()
        if phases and (phases.update(validation_loss(module)) and phases.phase == "finished"):
            break
    if phases:
        phases.detach()
    return phases


def callback(**settings: Any) -> AlchemyCallback:
    return AlchemyCallback(**{"monitor": "val_loss", "weight": WEIGHT, **PHASES, **settings})


def test_the_penalty_is_that_of_a_plain_loop() -> None:
    module, other = Validated(), Validated()
    fit(module, GammaPenaltyCallback(weight=WEIGHT))
    by_hand(other, EPOCHS, alchemy=False)
    assert_equal(module, other)
    plain = Validated()
    fit(plain)
    assert not torch.equal(plain.net[1].weight, module.net[1].weight)


def test_the_penalty_comes_once_a_step_and_is_clipped() -> None:
    module, other = Validated(), Validated()
    fit(module, GammaPenaltyCallback(weight=WEIGHT), accumulate_grad_batches=2, gradient_clip_val=0.3)
    by_hand(other, EPOCHS, alchemy=False, accumulate=2, clip=lambda of: nn.utils.clip_grad_norm_(of, 0.3))
    torch.testing.assert_close(weights(module), weights(other), rtol=1e-6, atol=1e-7)


def test_a_weight_of_0_is_lightnings_own_fit() -> None:
    module, other = Validated(), Validated()
    fit(module, GammaPenaltyCallback(weight=0.0))
    fit(other)
    assert_equal(module, other)


def test_the_phases_are_those_of_a_plain_loop() -> None:
    module, other = Validated(), Validated()
    learner = callback()
    run = fit(module, learner, max_epochs=9)
    phases = by_hand(other, 9)
    assert_equal(module, other)
    assert phases is not None
    assert learner.alchemy is not None
    assert learner.alchemy.history == phases.history
    assert learner.alchemy.phase == "finished"
    assert learner.alchemy.redundant is not None
    assert learner.alchemy.redundant.count > 0
    assert run.current_epoch == len(phases.history) < 9  # the end of the maximisation ended the fit


@pytest.mark.parametrize("stopped", [1, 2, 3])  # within a phase, and right after the modification
def test_a_fit_resumes_bit_for_bit_in_any_phase(stopped: int, tmp_path: Path) -> None:
    whole, learner = Validated(), callback()
    fit(whole, learner, max_epochs=4)
    fit(Validated(), callback(), max_epochs=stopped).save_checkpoint(tmp_path / "kept.ckpt")
    resumed, later = Validated(), callback()
    fit(resumed, later, max_epochs=4, ckpt_path=tmp_path / "kept.ckpt")
    assert_equal(resumed, whole)
    assert learner.state_dict() == later.state_dict()


@pytest.mark.parametrize("learn", [False, True])
def test_a_fit_resumes_from_a_validation_that_closes_an_epoch(learn: bool, tmp_path: Path) -> None:
    class Save(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
            if not trainer.sanity_checking and trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "kept.ckpt")

    def callbacks() -> list[Any]:
        return [callback(), *([MetaLRCallback(**LEARN, meta_loader=META)] if learn else [])]

    whole, (learner, *others) = Validated(), callbacks()
    fit(whole, learner, *others, Save(), max_epochs=4)
    resumed, (later, *others) = Validated(), callbacks()
    fit(resumed, later, *others, max_epochs=4, ckpt_path=tmp_path / "kept.ckpt")
    assert learner.state_dict() == later.state_dict()
    assert_equal(resumed, whole)


@pytest.mark.parametrize("stopped", [2, 3])  # right before the first rate is learned, and after
def test_rates_are_learned_from_the_maximisation_on(stopped: int, tmp_path: Path) -> None:
    def learner() -> MetaLRCallback:
        return MetaLRCallback(**LEARN, meta_loader=META)

    whole, learned = Validated(), learner()
    fit(whole, learned, callback(), max_epochs=4)
    assert learned.profile is not None
    assert learned.profile.steps[-1] == 2 * STEPS
    assert len(set(learned.lrs.values())) == len(learned.lrs) > 1
    fit(Validated(), learner(), callback(), max_epochs=stopped).save_checkpoint(tmp_path / "kept.ckpt")
    resumed, later = Validated(), learner()
    fit(resumed, later, callback(), max_epochs=4, ckpt_path=tmp_path / "kept.ckpt")
    assert_equal(resumed, whole)
    assert later.lrs == learned.lrs


def test_nothing_is_left_behind() -> None:
    module, plain = Validated(), Validated()
    run = fit(module, callback(), max_epochs=1)  # ends in the identification
    fit(plain, max_epochs=1)
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert [set(vars(of)) for of in module.modules()] == [set(vars(of)) for of in plain.modules()]
    assert not run.optimizers[0]._optimizer_step_pre_hooks

    class Fails(Validated):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
            raise RuntimeError("the user's own")

    module = Fails()
    with pytest.raises(RuntimeError, match="the user's own"):
        fit(module, callback())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_only_epochs_with_a_validation_count() -> None:
    learner = callback(maximisation=None)
    fit(Validated(), learner, max_epochs=6, check_val_every_n_epoch=2)
    assert learner.alchemy is not None
    assert [phase for phase, _ in learner.alchemy.history] == ["identification", "identification", "maximisation"]


def test_without_an_identification_the_fit_starts_with_the_modification() -> None:
    learner = callback(identification=None, maximisation=None, monitor=None)
    fit(Validated(), learner, max_epochs=1)
    assert learner.alchemy is not None
    assert learner.alchemy.redundant is not None
    assert learner.alchemy.phase == "maximisation"
    count = learner.alchemy.redundant.count
    again = fit(Validated(), learner, max_epochs=1)  # a later fit goes on, and modifies nothing
    assert again.current_epoch == 1
    assert len(learner.alchemy.history) == 2
    assert learner.alchemy.redundant.count == count > 0


def test_mistakes_give_one_clear_error() -> None:
    with pytest.raises(AlchemyError, match=r"give AlchemyCallback\(monitor=\.\.\.\)"):
        AlchemyCallback()
    with pytest.raises(AlchemyError, match=r"identification must be a layertune\.Convergence, .* not 3"):
        callback(identification=3)
    with pytest.raises(AlchemyError, match=r"quantile is a share between 0 and 1, not 2\.0"):
        callback(quantile=2.0)
    with pytest.raises(AlchemyError, match=r"monitor='val_dice'\) names no metric that was logged; .*val_loss"):
        fit(Validated(), callback(monitor="val_dice"))
    with pytest.raises(OptimizerError, match="gave 2"):
        fit(Adversarial(), callback())
    module = Validated()
    module.example_input_array = None
    with pytest.raises(ModelError, match="set its example_input_array"):
        fit(module, callback())
    module = Validated()
    module.net[1] = nn.Identity()
    with pytest.raises(ModelError, match="no normalisation layer"):
        fit(module, callback())
    with pytest.warns(UserWarning, match="GammaPenalty has no effect"):
        fit(module, GammaPenaltyCallback())


@pytest.mark.parametrize("first", [AlchemyCallback, GammaPenaltyCallback])
def test_a_second_penalty_is_refused_in_any_order_and_blocks_no_later_fit(first: type) -> None:
    module, both = Validated(), [callback(), GammaPenaltyCallback()]
    both.sort(key=lambda one: not isinstance(one, first))
    with pytest.raises(AlchemyError, match="so the penalty would count twice; leave one of the two out"):
        fit(module, *both)
    assert all(parameter.requires_grad for parameter in module.parameters())
    fit(module, GammaPenaltyCallback(), max_epochs=1)
    fit(module, callback(), max_epochs=1)


def test_a_fit_that_ends_within_the_identification_gives_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    fit(Validated(), callback(identification=Convergence(limit=9)))
    assert "so only the norms were trained" in caplog.text


def test_the_keys_in_a_checkpoint_are_those_of_version_0_1(tmp_path: Path) -> None:
    callbacks = callback(), MetaLRCallback(**LEARN, meta_loader=META)
    fit(Validated(), *callbacks, max_epochs=3).save_checkpoint(tmp_path / "kept.ckpt")
    checkpoint = torch.load(tmp_path / "kept.ckpt", weights_only=True)
    saved = {name: set(state) for name, state in checkpoint["callbacks"].items()}
    assert saved == {
        "AlchemyCallback": {"norms", "phase", "progress", "history", "identified", "redundant"},
        "MetaLRCallback{'optimizer': 0}": {"meta_batches"},
    }
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    assert {"meta_scale", "meta_steps", "meta_history"} <= set(group)
