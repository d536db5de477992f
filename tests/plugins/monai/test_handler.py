"""MONAI's MetaLRHandler compared with a plain loop, and with engines without it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.data import DistributedSampler as MonaiDistributedSampler
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

from layertune import LRProfile, map_layers, param_groups
from layertune_monai import MetaLRHandler
from monai_runs import (
    LEARN,
    META,
    SIZE,
    STEPS,
    assert_equal,
    augmented,
    batches,
    by_hand,
    items,
    network,
    saved_run,
    sgd,
    train,
    weights,
)


@pytest.mark.parametrize("streaming", [False, True], ids=["exact", "streaming"])
@pytest.mark.parametrize(
    ("of_engine", "of_loop", "settings"),
    [
        pytest.param({}, {}, {}, id="sgd"),
        pytest.param({"accumulation_steps": 2}, {"accumulate": 2}, {}, id="accumulate"),
        pytest.param({"accumulation_steps": 3}, {"accumulate": 3}, {}, id="accumulate with a rest"),
        pytest.param({"optim_set_to_none": True}, {}, {"every": 3}, id="every"),
        pytest.param({}, {}, {"rule": "additive", "max_lr": 1.0}, id="additive"),
        pytest.param({"decollate": True}, {}, {"rule": "cosine", "hyper_lr": 0.1}, id="cosine"),
    ],
)
def test_it_learns_what_a_plain_loop_learns(of_engine, of_loop, settings, streaming: bool) -> None:
    settings = LEARN | settings | {"streaming": streaming}
    ours, theirs = network(), network()
    mine = sgd(ours)
    handler = MetaLRHandler(mine, None if streaming else META, **settings)
    train(ours, mine, handler, **of_engine)
    lrs = by_hand(theirs, sgd(theirs), **of_loop, **settings)
    assert list(lrs) == ["0", "4", "6"]
    assert handler.lrs == lrs
    assert_equal(ours, theirs)
    assert len(set(lrs.values())) == 3  # otherwise equality proves nothing


def stepping(engine: Any, batch: Any) -> dict[str, Any]:
    """Train an iteration as a user may write it, without MONAI's events."""
    inputs, targets = engine.prepare_batch(batch, engine.state.device)
    engine.network.train()
    engine.optimizer.zero_grad()
    loss = engine.loss_function(engine.inferer(inputs, engine.network), targets)
    loss.backward()
    engine.optimizer.step()
    return {"loss": loss.detach()}


class OwnTrainer(SupervisedTrainer):
    def _iteration(self, engine: Any, batchdata: Any) -> dict[str, Any]:
        return stepping(engine, batchdata)


@pytest.mark.parametrize("of_engine", [{"iteration_update": stepping}, {"kind": OwnTrainer}], ids=["update", "class"])
def test_a_users_own_iteration_is_learned_from(of_engine: dict[str, Any]) -> None:
    ours, theirs = network(), network()
    mine = sgd(ours)
    handler = MetaLRHandler(mine, META, **LEARN)
    train(ours, mine, handler, **of_engine)
    assert handler.lrs == by_hand(theirs, sgd(theirs), **LEARN)
    assert_equal(ours, theirs)


def test_a_users_own_meta_loss_is_used() -> None:
    def twice(engine: Any, batch: Any) -> Tensor:
        seen.append(engine.state.iteration)
        return 2 * cross_entropy(engine.network(batch["image"]), batch["label"])

    seen: list[int] = []
    one, two = network(), network()
    first, second = sgd(one), sgd(two)
    plain, doubled = (
        MetaLRHandler(first, META, **LEARN),
        MetaLRHandler(second, META, meta_loss=twice, **(LEARN | {"hyper_lr": 0.15})),
    )
    train(one, first, plain)
    train(two, second, doubled)
    assert seen == list(range(1, 9))
    assert doubled.lrs == pytest.approx(plain.lrs, rel=1e-6)


def test_the_engines_own_settings_make_the_meta_loss() -> None:
    def prepare(batch: Any, device: Any, non_blocking: bool, **kwargs: Any) -> Any:
        given.append((device, non_blocking, kwargs))
        return batch["image"], batch["label"], (), {"scale": batch["image"].new_tensor(2.0)}

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.net(x) * scale

    given: list[Any] = []
    net = Scaled()
    optimizer = sgd(net)
    handler = MetaLRHandler(optimizer, META, **LEARN)
    train(net, optimizer, handler, prepare_batch=prepare, non_blocking=True, to_kwargs={"copy": True})
    assert list(handler.lrs) == ["net.0", "net.4", "net.6"]
    assert set(map(repr, given)) == {repr((torch.device("cpu"), True, {"copy": True}))}
    assert len(given) == 1 + 2 * 2 * STEPS  # once to trace the layers, then a training and a meta batch a step


@pytest.mark.parametrize("loader", [augmented, batches], ids=["augmented", "list"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"streaming": True}, {"meta_loader": META}, {"every": 3}],
    ids=["training data", "streaming", "meta", "every"],
)
def test_a_hyper_lr_of_0_changes_nothing(settings: dict[str, Any], loader: Any) -> None:
    if loader is batches and not settings.keys() & {"meta_loader", "streaming"}:
        settings = settings | {"meta_loader": augmented}
    with_it, without = network(), network()
    mine, theirs = sgd(with_it), sgd(without)
    torch.manual_seed(3)
    made = settings | {"meta_loader": made()} if callable(made := settings.get("meta_loader")) else settings
    run = train(with_it, mine, MetaLRHandler(mine, hyper_lr=0.0, **made), loader=loader, decollate=True)
    state = torch.get_rng_state()
    other = train(without, theirs, loader=loader, decollate=True)
    assert torch.equal(state, torch.get_rng_state())
    assert_equal(with_it, without)
    assert run.state.output[0]["loss"] == other.state.output[0]["loss"]


def test_random_state_of_transforms_that_both_loaders_share_is_restored() -> None:
    """In bundles one object of transforms serves two datasets."""
    drawn: list[list[Tensor]] = []
    for settings in ({"hyper_lr": 0.0}, None):
        torch.manual_seed(5)
        loader = augmented()
        meta = DataLoader(Dataset(items(1), loader.dataset.transform), batch_size=SIZE)
        torch.manual_seed(5)
        loader = DataLoader(loader.dataset, batch_size=SIZE, shuffle=True)
        seen: list[Tensor] = []
        net = network()
        optimizer = sgd(net)
        handlers = [] if settings is None else [MetaLRHandler(optimizer, meta, **settings)]

        def note(engine: Any, batch: Any, seen: list[Tensor] = seen) -> dict[str, Any]:
            seen.append(batch["image"].clone())
            return stepping(engine, batch)

        train(net, optimizer, *handlers, loader=loader, iteration_update=note)
        drawn.append([image.as_tensor() if isinstance(image, MetaTensor) else image for image in seen])
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)


class Recording:
    """A meta loss that keeps the images of the meta batches."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []

    def __call__(self, engine: Any, batch: Any) -> Tensor:
        self.images.append(batch["image"])
        return cross_entropy(engine.network(batch["image"]), batch["label"])


def test_by_default_the_meta_batches_are_the_training_data_in_another_order() -> None:
    recording = Recording()
    net = network()
    optimizer = sgd(net)
    loader = DataLoader(items(), batch_size=SIZE)
    train(net, optimizer, MetaLRHandler(optimizer, meta_loss=recording), loader=loader)
    seen = recording.images
    whole = torch.stack([item["image"] for item in items()])
    for passes in (seen[:STEPS], seen[STEPS:]):
        rows = torch.cat(passes)
        assert not torch.equal(rows, whole)
        torch.testing.assert_close(rows.flatten().sort().values, whole.flatten().sort().values)
    assert not torch.equal(seen[0], seen[STEPS])


def test_a_distributed_sampler_gives_another_order_in_each_pass() -> None:
    recording = Recording()
    net = network()
    optimizer = sgd(net)
    data = items(1)
    sampler = MonaiDistributedSampler(data, shuffle=True, num_replicas=1, rank=0)
    meta = DataLoader(data, batch_size=SIZE, sampler=sampler)
    train(net, optimizer, MetaLRHandler(optimizer, meta, meta_loss=recording))
    one, two = torch.cat(recording.images[:STEPS]), torch.cat(recording.images[STEPS:])
    assert not torch.equal(one, two)
    torch.testing.assert_close(one.flatten().sort().values, two.flatten().sort().values)
    assert sampler.epoch == 0


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'", "ignore:CUDA is not available or torch_xla")
@pytest.mark.filterwarnings("ignore:.torch.cuda.amp.GradScaler.args.... is deprecated")
@pytest.mark.parametrize("streaming", [False, True])
def test_a_gradient_scaler_scales_the_meta_loss_and_does_not_change(streaming: bool, monkeypatch) -> None:
    """The test takes the CPU's scaler in place of CUDA's, so that results are those of float32."""
    monkeypatch.setattr(
        torch.cuda.amp, "GradScaler", lambda: torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    )
    scales, settings = [], LEARN | {"streaming": streaming}
    for learns in (True, False):
        net = network()
        optimizer = sgd(net)
        handlers = [MetaLRHandler(optimizer, None if streaming else META, **settings)] if learns else []
        engine = train(net, optimizer, *handlers, amp=True)
        scales.append(engine.scaler.state_dict())
        if learns:
            plain = network()
            lrs = by_hand(plain, sgd(plain), **settings)
            assert handlers[0].lrs == pytest.approx(lrs, rel=1e-5)
            torch.testing.assert_close(weights(net), weights(plain), rtol=1e-5, atol=1e-6)
    assert scales[0] == scales[1]
    assert scales[0]["scale"] > 2.0**10


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'", "ignore:CUDA is not available or torch_xla")
@pytest.mark.filterwarnings("ignore:.torch.cuda.amp.GradScaler.args.... is deprecated")
def test_a_step_that_the_scaler_skips_is_not_learned_from(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda.amp, "GradScaler", lambda: torch.amp.GradScaler("cpu", init_scale=2.0**10))

    def overflowing(prediction: Tensor, target: Tensor) -> Tensor:
        calls.append(len(calls))
        # Calls: training, meta, training, ...; the first step and the third overflow and have no meta pass.
        return cross_entropy(prediction, target) * (float("inf") if calls[-1] in (0, 3) else 1.0)

    calls: list[int] = []
    net = network()
    optimizer = sgd(net)
    handler = MetaLRHandler(optimizer, META, **LEARN)
    train(net, optimizer, handler, amp=True, loss_function=overflowing)
    assert handler.profile is not None
    assert handler.profile.steps == (1, 2, 3, 4, 5, 6)
    assert len(calls) == 8 + 6


def test_an_optimizer_with_layers_of_its_own_keeps_them() -> None:
    net = network()
    layers = map_layers(net, torch.zeros(2, 1, 8, 8))
    optimizer = AdamW(param_groups(net, layers, lr=1e-2), lr=1e-2)
    handler = MetaLRHandler(optimizer, META, hyper_lr=0.5, rule="proportional")
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    train(net, optimizer, handler, LrScheduleHandler(schedule, print_lr=False))
    assert [group["lr"] for group in optimizer.param_groups] == [0.0025] * 3
    assert len(set(handler.lrs.values())) == 3


@pytest.mark.parametrize("last", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [{}, {"streaming": True}, {"meta_loader": META}, {"every": 3}],
    ids=["training data", "streaming", "meta", "every"],
)
def test_monais_checkpoints_resume_bit_for_bit(settings: dict[str, Any], last: int, tmp_path: Path) -> None:
    settings = LEARN | settings
    loader = DataLoader(items(), batch_size=SIZE)
    whole, _, through = saved_run(tmp_path, handler=settings, loader=loader)
    saved_run(tmp_path, handler=settings, last=last, loader=loader)
    resumed, _, again = saved_run(tmp_path, handler=settings, first=last, loader=loader)
    assert again.lrs == through.lrs
    assert again.profile == through.profile
    assert_equal(resumed, whole)


def test_a_second_run_goes_on() -> None:
    whole, half = network(), network()
    one, two = sgd(whole), sgd(half)
    through, parts = (MetaLRHandler(optimizer, META, **LEARN) for optimizer in (one, two))
    train(whole, one, through, epochs=4)
    engine = train(half, two, parts, epochs=2)
    engine.state.max_epochs = 4
    engine.run()
    assert parts.profile == through.profile
    assert_equal(whole, half)


def test_detaching_leaves_nothing_on_the_optimizer_and_keeps_the_rates(tmp_path: Path) -> None:
    net = network()
    optimizer = sgd(net)
    handler = MetaLRHandler(optimizer, META, **LEARN, output_dir=tmp_path / "results")
    before = set(vars(net)), set(optimizer.param_groups[0])
    train(net, optimizer, handler)
    assert LRProfile.load(tmp_path / "results" / "learned_rates.json") == handler.profile
    assert (tmp_path / "results" / "learned_rates.png").stat().st_size > 1000
    lrs, profile = handler.lrs, handler.profile
    handler.detach()
    assert (set(vars(net)), set(optimizer.param_groups[0])) == before
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    handler.detach()
    assert (handler.lrs, handler.profile) == (lrs, profile)
    assert len(lrs) == 3
