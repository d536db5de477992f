"""MetaLR under what hosts do around an optimizer: AMP, clipping, accumulation, closures, variants of one optimizer."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Adam, AdamW

from layertune import MetaLR, OptimizerError
from layertune.metalr.correcting.rules import RULES
from small_runs import (
    EVERY_RULE,
    Plain,
    Run,
    assert_learned,
    assert_same,
    batch,
    data,
    layer_groups,
    network,
    result,
    run,
    train,
)

MODES = [pytest.param({}, id="exact"), pytest.param({"streaming": True}, id="streaming")]  # with a rule beside


class Scaled(Plain):
    """Under a GradScaler; `overflow` names the steps whose loss is infinite."""

    def __init__(self, *, unscale: bool = False, clip: float | None = None, overflow: tuple[int, ...] = ()) -> None:
        # A growth at each second step changes the scale between a step and the next.
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2, backoff_factor=0.5)
        self.unscale, self.clip, self.overflow, self.steps = unscale, clip, overflow, 0

    @property
    def scale(self) -> float:
        return self.scaler.get_scale()

    def backward(self, net, batch):
        self.scaler.scale(mse_loss(net(batch[0]), batch[1])).backward()

    def step(self, net, optimizer, batch):
        infinite = (batch[0], batch[1] + float("inf")) if self.steps in self.overflow else batch
        self.steps += 1
        self.backward(net, infinite)
        if self.unscale or self.clip:
            self.scaler.unscale_(optimizer)
        if self.clip:
            nn.utils.clip_grad_norm_(net.parameters(), self.clip)
        self.scaler.step(optimizer)
        self.scaler.update()


class Clipped(Plain):
    def __init__(self, clip) -> None:
        self.clip = clip

    def step(self, net, optimizer, batch):
        self.backward(net, batch)
        self.clip(net.parameters())
        optimizer.step()


class Accumulated(Plain):
    """Four micro-batches a step."""

    def backward(self, net, batch):
        for x, y in zip(batch[0].chunk(4), batch[1].chunk(4), strict=True):
            (mse_loss(net(x), y) / 4).backward()


class Closure(Plain):
    def __init__(self, *, keyword: bool) -> None:
        self.keyword = keyword

    def step(self, net, optimizer, batch):
        def closure():
            optimizer.zero_grad()
            loss = mse_loss(net(batch[0]), batch[1])
            loss.backward()
            return loss

        loss = optimizer.step(closure=closure) if self.keyword else optimizer.step(closure)
        assert loss.item() > 0


# AMP


@pytest.mark.parametrize("rule", [*RULES, "free"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize(
    "make", [SGD, partial(SGD, fused=True), partial(AdamW, fused=True)], ids=["sgd", "fused", "fused adamw"]
)
def test_scaled_losses_teach_the_same_rates(rule, mode, unscale, make):
    settings = {"make": make, "options": {}, "lr": 0.02, "rule": rule, "hyper_lr": 0.02 if rule != "additive" else 2e-3}
    plain = run(**settings, **mode)
    scaled = run(**settings, **mode, loop=Scaled(unscale=unscale))
    assert max(abs(rate / 0.02 - 1) for rate in plain.lrs) > 1e-3
    assert_same(scaled, plain, 1e-10)


@pytest.mark.parametrize("mode", EVERY_RULE)
def test_float16_autocast_teaches_the_rates_of_full_precision(mode):
    class Autocast(Scaled):
        def backward(self, net, batch):
            with torch.autocast("cpu", dtype=torch.float16):
                loss = mse_loss(net(batch[0]).float(), batch[1])
            self.scaler.scale(loss).backward()

    full = run(**mode, dtype=torch.float32)
    half = run(**mode, dtype=torch.float32, loop=Autocast())
    assert_learned(full)
    torch.testing.assert_close(torch.tensor(half.lrs), torch.tensor(full.lrs), rtol=5e-3, atol=0)


@pytest.mark.parametrize("mode", EVERY_RULE)
def test_a_step_that_amp_skips_teaches_nothing(mode):
    plain = run(6, **mode)
    net = network()
    optimizer = SGD(layer_groups(net), momentum=0.9)
    metalr = MetaLR(optimizer, hyper_lr=0.02, **mode)
    seven = data(range(6))
    seven.insert(3, seven[0])
    loop = Scaled(overflow=(3,))
    train(net, optimizer, metalr, seven[:3], loop)
    before, waiting = result(net, metalr), metalr.due
    train(net, optimizer, metalr, seven[3:4], loop)
    assert_same(result(net, metalr), before)
    assert metalr.steps == 3
    assert metalr.due == waiting == metalr.streaming  # a displacement waits only where one did before
    assert_same(train(net, optimizer, metalr, seven[4:], loop), plain, 1e-10)
    assert metalr.skipped == 0


def test_adapt_after_a_skipped_step_leaves_the_gradients():
    net = network()
    optimizer = SGD(layer_groups(net))
    metalr = MetaLR(optimizer, hyper_lr=0.02)
    loop = Scaled(overflow=(1,))
    train(net, optimizer, metalr, data(range(2)), loop)
    optimizer.zero_grad()
    loop.backward(net, batch(7))
    before = [parameter.grad.clone() for parameter in net.parameters()]
    metalr.adapt(loop.scale)
    torch.testing.assert_close([parameter.grad for parameter in net.parameters()], before, rtol=0, atol=0)


def test_a_first_step_that_amp_skips_is_named_and_avoidable():
    net = network()
    optimizer = SGD(layer_groups(net))
    metalr = MetaLR(optimizer, hyper_lr=0.02, rule="additive")
    loop = Scaled(overflow=(0,))
    loop.step(net, optimizer, batch(0))
    assert not metalr.due
    loop.backward(net, batch(1))
    with pytest.raises(OptimizerError, match=r"if metalr\.due"):
        metalr.adapt(loop.scale)
    assert_learned(train(net, optimizer, metalr, data(range(12)), loop))


@pytest.mark.parametrize("mode", EVERY_RULE)
@pytest.mark.parametrize("make", [SGD, AdamW])
def test_an_overflow_in_a_fused_step_teaches_nothing(mode, make):
    net = network()
    optimizer = make(layer_groups(net), fused=True)
    metalr = MetaLR(optimizer, hyper_lr=1e-3, **mode)
    loop = Scaled(overflow=(0, 3))
    train(net, optimizer, metalr, data(range(3)), loop)
    before = result(net, metalr)
    train(net, optimizer, metalr, data(range(3, 4)), loop)
    after = result(net, metalr)
    assert after.lrs == before.lrs
    torch.testing.assert_close(after.weights, before.weights, rtol=0, atol=0)
    assert metalr.skipped == 0  # that is AMP's own skip, not a meta gradient gone wrong
    train(net, optimizer, metalr, data(range(4, 8)), loop)
    assert metalr.lrs != dict(zip(metalr.lrs, before.lrs, strict=True))


# Clipping, accumulation, closures


@pytest.mark.parametrize(
    "clip",
    [partial(nn.utils.clip_grad_norm_, max_norm=0.3), partial(nn.utils.clip_grad_value_, clip_value=0.05)],
    ids=["norm", "value"],
)
def test_the_direction_of_a_clipped_step_is_the_clipped_gradient(clip):
    net = network()
    optimizer = SGD(layer_groups(net))
    metalr = MetaLR(optimizer, hyper_lr=0.02, rule="additive")
    Clipped(clip).step(net, optimizer, batch(0))
    u = [parameter.grad.clone() for parameter in net.parameters()]
    optimizer.zero_grad()
    Plain().backward(net, batch(1))
    h = [-(g.grad * d).sum().item() for g, d in zip(net.parameters(), u, strict=True)]
    metalr.adapt()
    expected = [0.05 - 0.02 * (h[i] + h[i + 1]) for i in (0, 2, 4)]
    torch.testing.assert_close(list(metalr.lrs.values()), expected, rtol=1e-10, atol=0)
    assert run(4, loop=Clipped(clip)).lrs != run(4).lrs


def test_streaming_learns_from_the_clipped_gradient():
    clip = partial(nn.utils.clip_grad_norm_, max_norm=0.3)
    net = network()
    optimizer = SGD(layer_groups(net))
    metalr = MetaLR(optimizer, hyper_lr=0.02, rule="additive", streaming=True)
    grads = []
    for number in range(2):
        optimizer.zero_grad()
        Clipped(clip).step(net, optimizer, batch(number))
        grads.append([parameter.grad.clone() for parameter in net.parameters()])
    h = [-(g * u).sum().item() for u, g in zip(*grads, strict=True)]
    expected = [0.05 - 0.02 * (h[i] + h[i + 1]) for i in (0, 2, 4)]
    torch.testing.assert_close(list(metalr.lrs.values()), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("mode", EVERY_RULE)
def test_clipping_under_a_scaler_equals_clipping_without(mode):
    clip = partial(nn.utils.clip_grad_norm_, max_norm=0.3)
    assert_same(run(**mode, loop=Scaled(clip=0.3)), run(**mode, loop=Clipped(clip)), 1e-10)


@pytest.mark.parametrize("mode", EVERY_RULE)
def test_four_accumulated_micro_batches_equal_one_batch(mode):
    plain = run(**mode)
    assert_learned(plain)
    assert_same(run(**mode, loop=Accumulated()), plain, 1e-10)


def test_adapt_in_an_accumulating_iteration_does_nothing():
    net = network()
    optimizer = SGD(layer_groups(net))
    metalr = MetaLR(optimizer, hyper_lr=0.02)
    train(net, optimizer, metalr, data(range(2)))
    Plain().backward(net, batch(5))
    before, grads = result(net, metalr), [parameter.grad.clone() for parameter in net.parameters()]
    metalr.adapt()
    assert_same(result(net, metalr), before)
    torch.testing.assert_close([parameter.grad for parameter in net.parameters()], grads, rtol=0, atol=0)


@pytest.mark.parametrize("mode", EVERY_RULE)
@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("make", [SGD, AdamW])
def test_a_closure_gives_the_same_run(mode, keyword, make):
    settings = {"make": make, "options": {}, **mode}
    assert_same(run(**settings, loop=Closure(keyword=keyword)), run(**settings))


# Variants of one optimizer


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("make", "options"), [(SGD, {"momentum": 0.9}), (Adam, {}), (AdamW, {"weight_decay": 0.1})])
def test_foreach_and_fused_equal_the_plain_loop(mode, make, options):
    settings = {"make": make, "lr": 0.01, "hyper_lr": 1e-3, "rule": "additive", **mode}
    loop = run(**settings, options=options | {"foreach": False})
    assert_learned(loop, 0.01)
    for variant in ({"foreach": True}, {"fused": True}):
        assert_same(run(**settings, options=options | variant), loop, 1e-10)


@pytest.mark.parametrize("rule", ["joint", "free"])
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("variant", [{"foreach": False}, {"fused": True}])
def test_a_tensor_lr_shared_by_all_groups_is_not_changed(shape, variant, rule):
    lr = torch.full(shape, 0.01, dtype=torch.float64)
    net = network()
    optimizer = AdamW(layer_groups(net, lr), lr=lr, **variant)
    metalr = MetaLR(optimizer, hyper_lr=1e-3, rule=rule)
    of_tensor = train(net, optimizer, metalr, data(range(6)))
    assert all(group["lr"] is lr for group in optimizer.param_groups)
    assert lr.item() == 0.01
    assert_same(of_tensor, run(make=AdamW, options=variant, lr=0.01, hyper_lr=1e-3, rule=rule), 1e-10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="capturable optimizers need a GPU")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", [{"capturable": True}, {"fused": True}, {"capturable": True, "lr": "tensor"}])
def test_capturable_and_fused_on_a_gpu_equal_the_cpu_and_never_wait(mode, variant):
    net = network().cuda()
    lr = torch.tensor(0.01, device="cuda", dtype=torch.float64) if variant.get("lr") else 0.01
    optimizer = AdamW(layer_groups(net, lr), **{key: value for key, value in variant.items() if key != "lr"})
    metalr = MetaLR(optimizer, hyper_lr=1e-3, rule="joint", **mode)
    batches = [tuple((x.cuda(), y.cuda()) for x, y in pair) for pair in data(range(6))]
    train(net, optimizer, metalr, batches[:1])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for training, meta in batches[1:]:
            optimizer.zero_grad()
            Plain().step(net, optimizer, training)
            if metalr.due and not metalr.streaming:
                optimizer.zero_grad()
                Plain().backward(net, meta)
                metalr.adapt()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_gpu = result(net, metalr)
    on_gpu = Run([weight.cpu() for weight in on_gpu.weights], on_gpu.lrs, on_gpu.history)
    assert_same(on_gpu, run(make=AdamW, options={}, lr=0.01, hyper_lr=1e-3, rule="joint", **mode), 1e-8)
