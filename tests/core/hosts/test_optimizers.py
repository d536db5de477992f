"""Optimizers of other packages by name: the package's own steps, checks of what each needs, and missing packages."""

import copy
import importlib.metadata
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dadaptation import DAdaptAdam
from dog import LDoG, PolynomialDecayAverager
from prodigyopt import Prodigy
from schedulefree import AdamWScheduleFree
from torch import nn
from torch.optim import Optimizer

from layertune import (
    LayerDecay,
    MissingPackageError,
    OptimizerError,
    evaluation_weights,
    make_optimizer,
    map_layers,
    param_groups,
)
from layertune.hosts.evaluation_weights import renew_statistics
from layertune.hosts.optimizers import OPTIMIZERS
from layertune.hosts.split_prodigy import SplitProdigy
from small_networks import SmallResNet, image

Make = Callable[[nn.Module], Optimizer]

# Each optimizer as its own package makes it.
DIRECT: dict[str, Make] = {
    "prodigy": lambda net: Prodigy(net.parameters()),
    "ldog": lambda net: LDoG(net.parameters(), reps_rel=1e-4),
    "schedulefree_adamw": lambda net: AdamWScheduleFree(net.parameters(), lr=0.01, warmup_steps=3),
    "dadapt_adam": lambda net: DAdaptAdam(net.parameters()),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "ldog": {"reps_rel": 1e-4},
    "schedulefree_adamw": {"lr": 0.01, "warmup_steps": 3},
}


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return SmallResNet()


def train(net: nn.Module, optimizer: Optimizer, steps: int = 8) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(4, 1, 16, 16, generator=generator)).square().mean().backward()
        optimizer.step()


def assert_equal_weights(one: nn.Module, other: nn.Module) -> None:
    for (name, weight), expected in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("name", DIRECT)
def test_the_steps_are_those_of_the_package_itself(name: str) -> None:
    by_name, direct = small_net(), small_net()
    optimizer = make_optimizer(name, by_name, **OPTIONS.get(name, {}))
    expected = DIRECT[name](direct)
    if name == "schedulefree_adamw":
        expected.train()
    assert type(optimizer) is type(expected)
    train(by_name, optimizer)
    train(direct, expected)
    assert_equal_weights(by_name, direct)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_that_is_saved_and_resumed_ends_as_one_that_was_not(name: str) -> None:
    whole, parts = small_net(), small_net()
    optimizer = make_optimizer(name, whole, **OPTIONS.get(name, {}))
    train(whole, optimizer, 3)
    parts.load_state_dict(whole.state_dict())
    resumed = make_optimizer(name, parts, **OPTIONS.get(name, {}))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # loading adopts the tensors themselves
    train(whole, optimizer, 3)
    train(parts, resumed, 3)
    assert_equal_weights(whole, parts)


def test_split_prodigy_is_a_prodigy_for_each_layer() -> None:
    split, separate = small_net(), small_net()
    layers = map_layers(split, image(16))
    groups = param_groups(split, layers, lr=1.0, weight_decay=0.01)
    assert len(groups) > len(layers)  # layers with parameters that decay and others have two groups
    optimizer = make_optimizer("prodigy_split", groups)
    by_layer: dict[str, list[dict[str, Any]]] = {}
    for group in param_groups(separate, layers, lr=1.0, weight_decay=0.01):
        by_layer.setdefault(group["layer"], []).append(group)
    singles = [Prodigy(groups) for groups in by_layer.values()]
    train(split, optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(8):
        separate.zero_grad()
        separate(torch.randn(4, 1, 16, 16, generator=generator)).square().mean().backward()
        for single in singles:
            single.step()
    assert_equal_weights(split, separate)
    estimates = {group["layer"]: group["d"] for group in optimizer.param_groups}
    assert list(estimates.values()) == [single.param_groups[0]["d"] for single in singles]
    assert len(set(estimates.values())) > 1


def test_split_prodigy_runs_the_hooks_of_a_step_once_also_beside_a_plain_prodigy() -> None:
    net = small_net()
    Prodigy(net.parameters())  # torch wraps the step of a class when the first object is made
    optimizer = make_optimizer("prodigy_split", param_groups(net, map_layers(net, image(16)), lr=1.0))
    groups, calls = optimizer.param_groups, []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    train(net, optimizer, 2)
    assert calls == ["before", "after"] * 2
    assert optimizer.param_groups is groups


def test_split_prodigy_calls_a_closure_once_and_returns_its_loss() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = SplitProdigy([{"params": [weight]}])
    calls = []

    def closure() -> float:
        weight.grad = torch.ones(2)
        calls.append(1)
        return 3.0

    assert optimizer.step(closure) == 3.0
    assert calls == [1]


def test_groups_of_different_rates() -> None:
    net = small_net()
    groups = param_groups(net, map_layers(net, image(16)), lr=1.0, policy=LayerDecay(0.5))
    with pytest.raises(OptimizerError, match=r"one learning rate for all groups.* 0.00195312 to 1; .*prodigy_split"):
        make_optimizer("prodigy", groups)
    dadapt = make_optimizer("dadapt_adam", groups)
    rates = [group["lr"] for group in groups]
    assert [group["layer_scale"] for group in dadapt.param_groups] == rates
    assert {group["lr"] for group in dadapt.param_groups} == {1.0}
    train(net, dadapt, 2)
    assert [group["lr"] for group in make_optimizer("prodigy_split", groups).param_groups] == rates


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adam"])
def test_rates_that_a_scheduler_would_scale_are_refused(name: str) -> None:
    weights = [{"params": [nn.Parameter(torch.ones(2))], "lr_scale": scale} for scale in (0.5, 1.0)]
    with pytest.raises(OptimizerError, match="groups"):
        make_optimizer(name, weights)


def test_a_rate_of_another_optimizer_gets_a_warning() -> None:
    with pytest.warns(
        UserWarning, match=r"prodigy estimates its own step size, and lr=0.001 multiplies it; pass lr=1,"
    ):
        make_optimizer("prodigy", small_net(), lr=1e-3)
    assert make_optimizer("schedulefree_adamw", small_net(), lr=1e-3).param_groups[0]["lr"] == 1e-3


def test_frozen_parameters_are_left_out() -> None:
    net = small_net()
    for parameter in list(net.parameters())[:-1]:
        parameter.requires_grad_(False)
    assert [len(group["params"]) for group in make_optimizer("ldog", net).param_groups] == [1]
    list(net.parameters())[-1].requires_grad_(False)
    with pytest.raises(OptimizerError, match="no parameter that requires a gradient"):
        make_optimizer("ldog", net)


def test_ldog_says_what_it_misses() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = make_optimizer("ldog", [used, unused])
    used.square().sum().backward()
    with pytest.raises(OptimizerError, match="each of its 2 parameters in every step, and 1 have none"):
        optimizer.step()
    unused.grad = torch.full((2,), float("nan"))
    with pytest.raises(OptimizerError, match="diverged"):
        optimizer.step()


def test_the_average_of_weights_for_ldog_follows_its_formula() -> None:
    net = nn.Linear(2, 1)
    averager, average = PolynomialDecayAverager(net), None
    optimizer = make_optimizer("ldog", net, reps_rel=0.1)
    for step in range(1, 5):
        optimizer.zero_grad()
        net(torch.ones(1, 2)).square().sum().backward()
        optimizer.step()
        averager.step()
        share = 9 / (8 + step)
        weight = net.weight.detach().clone()
        average = weight if average is None else (1 - share) * average + share * weight
    torch.testing.assert_close(averager.averaged_model.weight.detach(), average)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "prodgy"}, "there is no optimizer 'prodgy'; the names are prodigy, prodigy_split, ldog"),
        ({"lr": 0.0}, "finite and above 0, not 0.0"),
        ({"lr": float("nan")}, "finite and above 0, not nan"),
        ({"d_cof": 2.0}, "prodigy refuses its options {'d_cof': 2.0}"),
        ({"eps": -1.0}, "Invalid epsilon"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    options = {"name": "prodigy", **change}
    with pytest.raises(OptimizerError, match=message):
        make_optimizer(options.pop("name"), small_net(), **options)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_missing_package_is_answered_with_the_line_that_installs_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(distribution: str) -> str:
        raise importlib.metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(MissingPackageError, match=r"not installed: pip install 'layertune\[optimizers\]'"):
        make_optimizer(name, small_net())


def test_what_the_packages_print_is_kept_from_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    make_optimizer("prodigy", small_net(), weight_decay=0.1)
    make_optimizer("dadapt_adam", small_net(), decouple=True)
    assert capsys.readouterr().out == ""


def test_evaluation_weights_are_those_of_the_packages_own_modes() -> None:
    net, other = small_net(), small_net()
    ours = make_optimizer("schedulefree_adamw", net, lr=0.01)
    own = AdamWScheduleFree(other.parameters(), lr=0.01)
    own.train()
    train(net, ours)
    train(other, own)
    with evaluation_weights(ours):
        own.eval()
        assert_equal_weights(net, other)
    own.train()
    assert_equal_weights(net, other)


def test_evaluation_weights_renew_the_statistics_of_batch_norms() -> None:
    """As the README of schedulefree does it: train mode, 50 training batches, at the weights to evaluate."""
    net = small_net()
    optimizer = make_optimizer("schedulefree_adamw", net, lr=0.01)
    train(net, optimizer)
    net.eval()
    batches = [torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(n)) for n in range(50)]
    random_state = torch.get_rng_state()
    with evaluation_weights(optimizer, net, batches):
        norm = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d))
        conv = net.get_submodule(next(name for name, m in net.named_modules() if isinstance(m, nn.Conv2d)))
        mean = torch.zeros_like(norm.running_mean)
        for batch in batches:  # the first norm follows the first convolution
            mean = 0.9 * mean + 0.1 * conv(batch).detach().mean((0, 2, 3))
        # What was there before still weighs 0.9 ** 50.
        torch.testing.assert_close(norm.running_mean, mean, rtol=0, atol=0.9**50 * 10)
        assert not net.training
    assert not net.training
    assert torch.equal(random_state, torch.get_rng_state())


def test_a_network_without_running_statistics_costs_no_pass() -> None:
    def batches() -> Any:
        raise AssertionError("no batch is made")
        yield

    assert renew_statistics(nn.Linear(1, 1), batches()) == 0
    with pytest.raises(OptimizerError, match="pass the model"):
        renew_statistics(None, [torch.ones(1)])


def test_other_optimizers_have_one_kind_of_weights() -> None:
    net = nn.Linear(1, 1)
    before = net.weight.item()
    with evaluation_weights(torch.optim.SGD(net.parameters(), lr=0.1)):
        assert net.weight.item() == before
