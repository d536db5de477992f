"""The benchmark measures what it says; how fast things are is not tested here."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, AdamW

from layertune import MetaLR, map_layers, param_groups
from layertune.errors import MissingPackageError, OptimizerError
from layertune_studies.bench import step as step_module
from layertune_studies.bench import trace as trace_module
from layertune_studies.bench.memory import PeakBytes
from layertune_studies.bench.networks import STEP_NETWORKS, StepNetwork
from layertune_studies.bench.second_order import SecondOrderMetaLR
from layertune_studies.bench.step import CYCLE, bench_step, extra_memory
from layertune_studies.bench.trace import TRACE_NETWORKS, bench_trace

KEYS = {f"{name}_ratio" for name in ("exact", "every10", "streaming", "second_order", "published", "extra_memory")}


def small_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> StepNetwork:
    spec = StepNetwork(
        build=small_net,
        shape=(4, 1, 8, 8),
        target_shape=(4,),
        classes=3,
        optimizer=lambda groups: SGD(groups, momentum=0.9),
        lr=0.01,
    )
    monkeypatch.setitem(STEP_NETWORKS, "small", spec)
    return spec


@pytest.mark.parametrize("rates_only", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_second_order_learns_the_same_as_metalr_at_every_step(momentum: float, rates_only: bool) -> None:
    torch.manual_seed(0)
    first, second = small_net().double(), small_net().double()
    second.load_state_dict(first.state_dict())
    layers = map_layers(small_net(), torch.empty(2, 1, 8, 8))
    slow, fast = (SGD(param_groups(net, layers, lr=0.05), momentum=momentum) for net in (first, second))
    settings = {"loss": mse_loss, "hyper_lr": 1e-3, "rates_only": rates_only}
    learner = SecondOrderMetaLR(lambda: small_net().double(), first, slow, **settings)
    metalr = MetaLR(fast, hyper_lr=1e-3, rule="additive", max_change=1e6)  # eq. 3 has no such bound
    for _ in range(6):
        (x, x_meta), (y, y_meta) = torch.randn(2, 4, 1, 8, 8).double(), torch.randn(2, 4, 3).double()
        before = [group["lr"] for group in slow.param_groups]
        h = learner.step((x, y), (x_meta, y_meta))
        fast.zero_grad()
        mse_loss(second(x), y).backward()
        fast.step()
        running = {key: value.clone() for key, value in second.named_buffers()}
        fast.zero_grad()
        mse_loss(second(x_meta), y_meta).backward()
        second.load_state_dict(running, strict=False)
        metalr.adapt()
        learned = [group["lr"] for group in slow.param_groups]
        assert learned != before
        assert learned == pytest.approx([b - 1e-3 * s for b, s in zip(before, h.tolist(), strict=True)], rel=1e-12)
        assert list(metalr.lrs.values()) == pytest.approx(learned, rel=1e-9)
        for key, value in first.state_dict().items():
            torch.testing.assert_close(second.state_dict()[key], value, rtol=1e-9, atol=1e-12)


def test_second_order_refuses_an_optimizer_whose_rule_it_does_not_differentiate() -> None:
    net = small_net()
    for optimizer in (AdamW(net.parameters()), SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)):
        with pytest.raises(OptimizerError, match="without dampening"):
            SecondOrderMetaLR(small_net, net, optimizer, loss=mse_loss, hyper_lr=0.1)


@pytest.mark.usefixtures("small")
def test_bench_step_has_all_keys_and_finite_ratios() -> None:
    found = bench_step("small", repeats=1)
    assert {key for key in found if key.endswith("_ratio")} == KEYS
    assert all(math.isfinite(found[key]) and found[key] > 0 for key in KEYS)
    assert set(found) - KEYS == {"plain_ms", "repeats", "spread"}
    assert all(low <= high for low, high in found["spread"].values())
    json.dumps(found)


def test_every_contender_starts_equal_and_trains(small: StepNetwork) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module, "HYPER_LR", 0.0)
        contenders = step_module._contenders(small, seed=0)
    assert list(contenders) == ["streaming", "plain", "every10", "exact", "second_order", "published"]
    losses = {name: _losses_of(step) for name, step in contenders.items()}
    assert losses["streaming"] == losses["plain"] == losses["every10"]
    assert losses["plain"] == losses["exact"][::2], "a meta pass between steps changes nothing at a hyper-rate of 0"
    assert losses["plain"][1] < losses["plain"][0]


def _losses_of(step: Callable[[], object]) -> list[float]:
    """Of all forward passes in two steps."""
    seen: list[float] = []

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        value = nn.functional.cross_entropy(output, target)
        seen.append(value.item())
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepNetwork, "loss", staticmethod(loss))
        step()
        step()
    return seen


def test_the_cycle_of_ten_holds_its_one_meta_pass() -> None:
    times = {"plain": [1.0] * 20, "every10": ([1.0] * 9 + [2.0]) * 2, "exact": [2.0] * 20, "second_order": [4.0] * 4}
    assert CYCLE == 10
    assert step_module._paired(times, "every10") == pytest.approx([1.1, 1.1])
    assert step_module._paired(times, "exact") == [2.0] * 20
    assert step_module._paired(times, "second_order") == [4.0] * 4


def test_extra_memory_is_one_buffer_the_size_of_the_parameters(small: StepNetwork) -> None:
    # Wide layers, beside which the scalars that MetaLR keeps for each layer weigh nothing, as in a real network.
    wide = replace(
        small, build=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 2**17), nn.ReLU(), nn.Linear(2**17, 3))
    )
    assert 1.0 <= extra_memory(wide) < 1.05


def test_peak_bytes_sees_what_autograd_keeps() -> None:
    x = torch.ones(1000, requires_grad=True)
    with PeakBytes() as counted:
        loss = (x.exp() * 2).sum()
        kept = counted.alive
        loss.backward()
        del loss
    assert kept >= 4000, "exp keeps its result for the backward pass"
    assert counted.peak >= kept
    assert counted.alive == 4000, "the gradient is left"


@pytest.mark.slow
def test_bench_trace_measures_in_an_interpreter_of_its_own() -> None:
    found = bench_trace("resnet18")
    assert set(found) == {"seconds", "extra_mb", "import_seconds", "import_mb", "layers"}
    assert found["layers"] == 10
    assert found["seconds"] > 0


# In a process that has run other tests, memory that these have left may be freed within the measurement.
GREEDY = """
import torch
from torch import nn

from layertune_studies.bench import trace

def greedy(*_):
    torch.ones(16 * 2**20).sum()
    return [0]

trace.map_layers = greedy
trace.TRACE_NETWORKS["small"] = (lambda: nn.Linear(2, 2), (2, 2))
held = torch.ones(16 * 2**20)
print(trace.measure_trace("small")["extra_mb"])
"""


@pytest.mark.slow
def test_the_peak_is_that_of_the_mapping() -> None:
    """Memory that is taken and freed inside counts, and memory that was held before does not."""
    result = subprocess.run([sys.executable, "-c", GREEDY], capture_output=True, text=True, timeout=120, check=True)
    assert 60 < float(result.stdout) < 100


def test_bench_trace_refuses_an_unknown_network_and_reports_a_missing_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyError, match="lenet"):
        bench_trace("lenet")

    def build() -> nn.Module:
        raise ModuleNotFoundError("No module named 'monai'", name="monai")

    monkeypatch.setitem(TRACE_NETWORKS, "small", (build, (1,)))
    trace_module.report("small", 1)
    printed = capsys.readouterr().out
    assert "pip install 'layertune[studies]'" in json.loads(printed)["missing"]
    monkeypatch.setattr(trace_module.subprocess, "run", lambda *_, **__: type("Done", (), {"stdout": printed}))
    with pytest.raises(MissingPackageError, match="monai"):
        bench_trace("small")
