"""MetaLR under learning-rate schedulers: theirs is `lr`, MetaLR's a factor on it."""

import importlib
import math
from functools import cache, partial

import pytest
import torch
from torch.nn.functional import mse_loss
from torch.optim import SGD, lr_scheduler

from layertune import MetaLR
from small_runs import data, layer_groups, network

STEPS = 14

# Each takes (optimizer, **options); how it is stepped is told by `advance`.
TORCH = {
    "step": partial(lr_scheduler.StepLR, step_size=3, gamma=0.5),
    "multistep": partial(lr_scheduler.MultiStepLR, milestones=[2, 7], gamma=0.3),
    "exponential": partial(lr_scheduler.ExponentialLR, gamma=0.9),
    "linear": partial(lr_scheduler.LinearLR, start_factor=0.1, total_iters=6),
    "constant": partial(lr_scheduler.ConstantLR, factor=0.2, total_iters=5),
    "polynomial": partial(lr_scheduler.PolynomialLR, total_iters=12, power=0.9),
    "multiplicative": partial(lr_scheduler.MultiplicativeLR, lr_lambda=lambda epoch: 1.0 - 0.02 * epoch),
    "plateau": partial(lr_scheduler.ReduceLROnPlateau, patience=1, factor=0.5),
    "cosine": partial(lr_scheduler.CosineAnnealingLR, T_max=10, eta_min=1e-3),
    "lambda": partial(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 0.1 + epoch / 20),
    "lambda from zero": partial(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: min(1.0, epoch / 5)),
    "one cycle": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=STEPS + 1),
    "cyclic": partial(lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=3),
    "warm restarts": partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=4, T_mult=2, eta_min=1e-3),
    "sequential": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4), lr_scheduler.CosineAnnealingLR(optimizer, 8)],
        milestones=[4],
    ),
    "chained": lambda optimizer: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(optimizer, 0.3, total_iters=5), lr_scheduler.ExponentialLR(optimizer, 0.95)],
    ),
}
TIMM = {
    "timm cosine": ("CosineLRScheduler", {"t_initial": 10, "lr_min": 1e-4, "warmup_t": 3, "warmup_lr_init": 1e-3}),
    "timm cosine from zero": ("CosineLRScheduler", {"t_initial": 10, "warmup_t": 3, "warmup_lr_init": 0.0}),
    "timm step": ("StepLRScheduler", {"decay_t": 4, "decay_rate": 0.5}),
    "timm poly": ("PolyLRScheduler", {"t_initial": 12, "power": 0.9, "warmup_t": 2, "warmup_lr_init": 1e-3}),
    "timm tanh": ("TanhLRScheduler", {"t_initial": 12, "lb": -6.0, "ub": 4.0}),
    # Not PlateauLRScheduler: timm 1.0.22 cannot make one with this PyTorch, which took `verbose` out of its own.
}
NNUNET = "nnU-Net poly"


def schedule(name, optimizer):
    """A function of the step that brings the optimizer's rates to the next one."""
    if name in TIMM:
        cls, options = TIMM[name]
        scheduler = getattr(importlib.import_module("timm.scheduler"), cls)(optimizer, **options)
        return lambda step: scheduler.step(step + 1)
    if name == NNUNET:
        polylr = importlib.import_module("nnunetv2.training.lr_scheduler.polylr")
        scheduler = polylr.PolyLRScheduler(optimizer, 0.05, STEPS + 1)
        return lambda step: scheduler.step(step + 1)
    scheduler = TORCH[name](optimizer)
    return (lambda step: scheduler.step(metrics(step))) if name == "plateau" else (lambda _: scheduler.step())


def metrics(step):
    """A validation loss that falls, stalls and falls: of the schedule alone, so that it is the same in every run."""
    return [5.0, 4.0, 4.0, 4.0, 4.0, 3.0, 3.0, 3.0, 3.0, 3.0, 2.0, 2.0, 2.0, 2.0][step]


def trajectory(name, attach, *, before=False):
    """lr and momentum of each group at each step; with MetaLR every step is checked against lr times factor."""
    net = network()
    groups = [group | {"lr_scale": scale} for group, scale in zip(layer_groups(net), (1.0, 0.5, 0.25), strict=True)]
    optimizer = SGD(groups, lr=0.05, momentum=0.9)
    metalr = attach(optimizer) if before else None
    advance = schedule(name, optimizer)
    metalr = metalr or attach(optimizer)
    seen, start = [], []
    # After MetaLR's own hook, which under streaming corrects the step before.
    optimizer.register_step_pre_hook(lambda *_: start.append([p.detach().clone() for p in net.parameters()]))
    for step, (training, meta) in enumerate(data(range(STEPS))):
        seen.append([(group["lr"], group["momentum"]) for group in optimizer.param_groups])
        optimizer.zero_grad()
        mse_loss(net(training[0]), training[1]).backward()
        optimizer.step()
        require_rates(optimizer, start[-1], [lr for lr, _ in seen[-1]])
        if metalr and metalr.due and not metalr.streaming:
            optimizer.zero_grad()
            mse_loss(net(meta[0]), meta[1]).backward()
            metalr.adapt()
        advance(step)
    return seen, metalr


def require_rates(optimizer, start, lrs):
    """-d = lr * factor * u, with u the momentum buffer of SGD."""
    starts = iter(start)
    for group, lr in zip(optimizer.param_groups, lrs, strict=True):
        rate = lr * float(group.get("meta_scale", 1.0))
        for parameter in group["params"]:
            u = optimizer.state[parameter]["momentum_buffer"]
            torch.testing.assert_close(next(starts) - parameter.detach(), rate * u, rtol=1e-9, atol=1e-15)


@cache
def plain(name):
    return trajectory(name, lambda _: None)[0]


@pytest.mark.parametrize(
    ("settings", "before"),
    [
        pytest.param({}, True, id="exact, attached before the scheduler"),
        pytest.param({}, False, id="exact"),
        pytest.param({"streaming": True}, False, id="streaming"),
        pytest.param({"every": 3}, False, id="every 3"),
        pytest.param({"rule": "free"}, True, id="free, attached before the scheduler"),
        pytest.param({"rule": "free", "streaming": True}, False, id="free streaming"),
    ],
)
@pytest.mark.parametrize("name", [*TORCH, *TIMM, NNUNET])
def test_a_schedule_is_its_own_and_each_step_takes_lr_times_the_learned_factor(name, settings, before, monkeypatch):
    monkeypatch.setattr("layertune.metalr.free.learner.FARTHEST", math.inf)  # else some steps are shortened
    attach = partial(MetaLR, **({"hyper_lr": 0.05, "rule": "proportional"} | settings))
    scheduled, metalr = trajectory(name, attach, before=before)
    assert scheduled == plain(name)
    assert len({lrs[0] for lrs in scheduled}) > 1  # a schedule that moves
    scales = [float(group["meta_scale"]) for group in metalr.optimizer.param_groups]
    assert all(abs(scale - 1) > 1e-3 for scale in scales)
    lrs = [group["lr"] * scale for group, scale in zip(metalr.optimizer.param_groups, scales, strict=True)]
    assert list(metalr.lrs.values()) == lrs
