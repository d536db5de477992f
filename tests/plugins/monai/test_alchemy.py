"""Network Alchemy in MONAI's engines compared with a plain loop: same weights, same phases, resumed in any of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ignite.metrics import Loss
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import CheckpointLoader, CheckpointSaver, ValidationHandler, from_engine
from torch import nn
from torch.nn.functional import cross_entropy

from layertune import Alchemy, AlchemyError, Convergence, GammaPenalty, ModelError
from layertune.alchemy.convergence import DEFAULT_IDENTIFICATION
from layertune_monai import AlchemyHandler, GammaPenaltyHandler, MetaLRHandler
from monai_runs import LEARN, META, STEPS, assert_equal, batches, sgd, train, weights
from monai_runs import network as plain_network

WEIGHT = 0.5
PHASES: dict[str, Any] = {
    "quantile": 0.3,
    "identification": Convergence(limit=2),
    "maximisation": Convergence(patience=2, limit=3),
}


def network() -> nn.Sequential:
    """Make a network with uneven gammas, and without dropout, whose random state MONAI does not save."""
    net = plain_network(dropout=0.0)
    nn.init.normal_(net[1].weight, 0.5, generator=torch.Generator().manual_seed(2))
    return net


def evaluator(net: nn.Module, name: str = "val_loss") -> SupervisedEvaluator:
    of = {name: Loss(cross_entropy, output_transform=from_engine(["pred", "label"]))}
    data = {"device": torch.device("cpu"), "val_data_loader": META[:1], "network": net}
    return SupervisedEvaluator(**data, key_val_metric=of, decollate=False)


def validation_loss(net: nn.Module) -> float:
    net.eval()
    with torch.no_grad():
        value = cross_entropy(net(META[0]["image"]), META[0]["label"]).item()
    net.train()
    return value


def by_hand(net: nn.Module, epochs: int, *, alchemy: bool = True, accumulate: int = 1) -> Alchemy | None:
    """Train in a plain loop, with the phases or with the penalty alone."""
    optimizer, penalty = sgd(net), GammaPenalty(net, weight=WEIGHT)
    phases = Alchemy(net, optimizer, torch.empty(2, 1, 8, 8), penalty=penalty, **PHASES) if alchemy else None
    net.train()
    for _ in range(epochs):
        for number, batch in enumerate(batches()):
            if number % accumulate == 0:
                optimizer.zero_grad()
            loss = cross_entropy(net(batch["image"]), batch["label"]) / accumulate
            last = (number + 1) % accumulate == 0 or number + 1 == STEPS
            if last:
                loss = loss + (phases.penalty() if phases else penalty())
            loss.backward()
            if last:
                optimizer.step()
        if phases and phases.update(validation_loss(net)) and phases.phase == "finished":
            break
    if phases:
        phases.detach()
    return phases


def run(
    epochs: int, folder: Path | None = None, *, load: bool = False, learn: bool = False, **settings: Any
) -> tuple[Any, Any, Any]:
    """Run an engine with a validation and the handler, which comes first in the list.

    Returns:
        The network, the handler (of MetaLR, if that learns), and the engine.
    """
    net = network()
    optimizer, judge = sgd(net), evaluator(net)
    handler = AlchemyHandler(optimizer, **{"evaluator": judge, "weight": WEIGHT, **PHASES, **settings})
    handlers: list[Any] = [handler, ValidationHandler(interval=1, validator=judge)]
    state: dict[str, Any] = {"network": net, "optimizer": optimizer, "alchemy": handler}
    if learn:
        state["metalr"] = MetaLRHandler(optimizer, META, **LEARN, after=handler)
        handlers.insert(0, state["metalr"])
    if folder is not None:
        saver = CheckpointSaver(str(folder), state, save_final=True, final_filename="last.pt")
        handlers.append(saver)

    class Engine(SupervisedTrainer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            if folder is not None:
                saver.save_dict["trainer"] = self
            if load:
                loaded = {**state, "trainer": self}
                CheckpointLoader(str(folder / "last.pt"), loaded, map_location="cpu").attach(self)

    engine = train(net, optimizer, *handlers, epochs=epochs, kind=Engine)
    return net, state["metalr"] if learn else handler, engine


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_penalty_is_that_of_a_plain_loop(accumulate: int) -> None:
    net, other, plain = network(), network(), network()
    optimizer = sgd(net)
    handler = GammaPenaltyHandler(optimizer, weight=WEIGHT)
    train(net, optimizer, handler, accumulation_steps=accumulate)
    by_hand(other, 2, alchemy=False, accumulate=accumulate)
    if accumulate == 1:
        assert_equal(net, other)
    torch.testing.assert_close(weights(net), weights(other), rtol=1e-6, atol=1e-7)
    train(plain, sgd(plain), accumulation_steps=accumulate)
    assert not torch.equal(plain[1].weight, net[1].weight)
    handler.detach()
    assert not optimizer._optimizer_step_pre_hooks


def test_a_weight_of_0_is_monais_own_run() -> None:
    net, other = network(), network()
    optimizer = sgd(net)
    train(net, optimizer, GammaPenaltyHandler(optimizer, weight=0.0))
    train(other, sgd(other))
    assert_equal(net, other)


def test_the_phases_are_those_of_a_plain_loop() -> None:
    net, handler, engine = run(9)
    other = network()
    phases = by_hand(other, 9)
    assert_equal(net, other)
    assert phases is not None
    assert handler.alchemy.history == phases.history
    assert handler.alchemy.phase == "finished"
    assert handler.alchemy.redundant.count > 0
    assert engine.state.epoch == len(phases.history) < 9  # the end of the maximisation ended the run
    handler.detach()
    assert not handler.optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("stopped", [1, 2, 3])  # within a phase, and right after the modification
def test_a_run_resumes_bit_for_bit_in_any_phase(stopped: int, tmp_path: Path) -> None:
    whole, handler, _ = run(4)
    run(stopped, tmp_path)
    resumed, later, _ = run(4, tmp_path, load=True)
    assert_equal(resumed, whole)
    assert handler.state_dict() == later.state_dict()


@pytest.mark.parametrize("stopped", [2, 3])  # right before the first rate is learned, and after
def test_rates_are_learned_from_the_maximisation_on(stopped: int, tmp_path: Path) -> None:
    whole, learned, _ = run(4, learn=True)
    assert learned.profile.steps[-1] == 2 * STEPS
    assert len(set(learned.lrs.values())) == len(learned.lrs) > 1
    run(stopped, tmp_path, learn=True)
    resumed, later, _ = run(4, tmp_path, load=True, learn=True)
    assert_equal(resumed, whole)
    assert later.lrs == learned.lrs


def test_detaching_unfreezes() -> None:
    net, handler, _ = run(1)  # ends in the identification
    assert [name for name, parameter in net.named_parameters() if parameter.requires_grad] == ["1.weight", "1.bias"]
    state = handler.state_dict()
    handler.detach()
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert handler.state_dict() == state
    assert not handler.optimizer._optimizer_step_pre_hooks
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_without_an_identification_the_run_starts_with_the_modification() -> None:
    _, handler, _ = run(2, identification=None, maximisation=None, evaluator=None)
    assert handler.alchemy.history == [("maximisation", None)] * 2
    assert handler.alchemy.redundant.count > 0


def test_by_default_the_key_metric_of_an_evaluator_grows() -> None:
    optimizer, judge = sgd(network()), evaluator(network())
    assert AlchemyHandler(optimizer, evaluator=judge).settings.identification == replace(
        DEFAULT_IDENTIFICATION, mode="max"
    )
    falls = replace(DEFAULT_IDENTIFICATION, mode="min")
    assert AlchemyHandler(optimizer, evaluator=judge, identification=falls).settings.identification == falls


def test_mistakes_give_one_clear_error() -> None:
    with pytest.raises(AlchemyError, match=r"give AlchemyHandler\(evaluator=\.\.\.\)"):
        AlchemyHandler(sgd(network()))
    with pytest.raises(AlchemyError, match=r"metric='val_dice'\) names no metric .*which has: val_loss"):
        run(1, metric="val_dice")
    with pytest.raises(AlchemyError, match=r"quantile is a share between 0 and 1, not 2\.0"):
        AlchemyHandler(sgd(network()), quantile=2.0, identification=Convergence(limit=1))
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1))
    optimizer = sgd(net)
    with pytest.raises(ModelError, match="no normalisation layer"):
        train(net, optimizer, AlchemyHandler(optimizer, identification=Convergence(limit=1)))
    with pytest.warns(UserWarning, match="GammaPenalty has no effect"):
        train(net, optimizer, GammaPenaltyHandler(optimizer), epochs=1)
    net, handler, engine = run(1)
    with pytest.raises(ModelError, match="AlchemyHandler came to a Engine that has begun"):
        handler.attach(engine)


def test_a_wrapper_that_waits_for_frozen_layers_is_refused(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(network())
        optimizer = sgd(wrapped)
        with pytest.raises(ModelError, match="part of the network is to be frozen, and DistributedDataParallel waits"):
            train(wrapped, optimizer, AlchemyHandler(optimizer, identification=Convergence(limit=1)))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("first", [AlchemyHandler, GammaPenaltyHandler])
def test_a_second_penalty_is_refused_in_any_order_until_the_first_is_detached(first: type) -> None:
    net = network()
    optimizer = sgd(net)
    handlers = [
        AlchemyHandler(optimizer, identification=Convergence(limit=9), quantile=0.3),
        GammaPenaltyHandler(optimizer),
    ]
    handlers.sort(key=lambda one: not isinstance(one, first))
    train(net, optimizer, handlers[0], epochs=1)
    with pytest.raises(AlchemyError, match=f"and {first.__name__} adds one already, so the penalty would count twice"):
        train(net, optimizer, handlers[1], epochs=1)
    handlers[0].detach()
    assert all(parameter.requires_grad for parameter in net.parameters())
    train(net, optimizer, handlers[1], epochs=1)


def test_two_penalties_beside_each_other_are_refused_in_the_first_iteration() -> None:
    net = network()
    optimizer = sgd(net)
    alchemy = AlchemyHandler(optimizer, identification=Convergence(limit=9), quantile=0.3)
    with pytest.raises(AlchemyError, match=r"AlchemyHandler would add .* and GammaPenaltyHandler adds one already"):
        train(net, optimizer, alchemy, GammaPenaltyHandler(optimizer))
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_a_run_that_ends_within_the_identification_gives_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    run(1)
    assert "so only the norms were trained" in caplog.text
