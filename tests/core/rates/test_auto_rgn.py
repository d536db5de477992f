"""Auto-RGN against factors computed by hand, and against the formula on a network."""

import copy

import pytest
import torch
from torch import nn

from layertune import AutoRGN, MetaLR, OptimizerError, map_layers, param_groups
from small_networks import SmallResNet, image


def weights(*values: float) -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor([value, 0.0])) for value in values]


def sgd(parameters: list[nn.Parameter], lr: float = 1.0) -> torch.optim.SGD:
    names = "abcdef"
    return torch.optim.SGD([{"params": [p], "layer": names[n]} for n, p in enumerate(parameters)], lr=lr)


def test_rates_follow_the_relative_gradient_norms_worked_out_by_hand() -> None:
    parameters = weights(2.0, 4.0, 1.0)
    optimizer = sgd(parameters, lr=0.1)
    auto_rgn = AutoRGN(optimizer, batches=2)
    assert auto_rgn.factors == {"a": 1.0, "b": 1.0, "c": 1.0}
    for parameter, grad in zip(parameters, (3.0, 2.0, 0.5), strict=True):
        parameter.grad = torch.tensor([0.0, grad])
    optimizer.step()
    # Relative norms 3 / 2, 2 / 4 and 0.5 / 1; the largest is that of a.
    assert auto_rgn.factors == pytest.approx({"a": 1.0, "b": 1 / 3, "c": 1 / 3})
    assert auto_rgn.lrs == pytest.approx({"a": 0.1, "b": 0.1 / 3, "c": 0.1 / 3})
    assert [p[1].item() for p in parameters] == pytest.approx([-0.3, -0.2 / 3, -0.05 / 3])
    with torch.no_grad():
        for parameter, value in zip(parameters, (1.0, 1.0, 1.0), strict=True):
            parameter.copy_(torch.tensor([value, 0.0]))
            parameter.grad = torch.tensor([0.0, 2.5])
    optimizer.step()
    # Averages of two: 1.5 and 2.5, 0.5 and 2.5, 0.5 and 2.5.
    assert auto_rgn.factors == pytest.approx({"a": 1.0, "b": 0.75, "c": 0.75})
    for _ in range(2):
        with torch.no_grad():
            for parameter, grad in zip(parameters, (1.0, 2.0, 4.0), strict=True):
                parameter.copy_(torch.tensor([1.0, 0.0]))
                parameter.grad = torch.tensor([0.0, grad])
        optimizer.step()
    assert auto_rgn.factors == pytest.approx({"a": 0.25, "b": 0.5, "c": 1.0})  # the first two are forgotten


def test_all_groups_and_parameters_of_a_layer_count_together() -> None:
    torch.manual_seed(0)
    net = SmallResNet()
    layers = map_layers(net, image(16))
    optimizer = torch.optim.SGD(param_groups(net, layers, lr=0.1, weight_decay=1e-2), momentum=0.9)
    auto_rgn = AutoRGN(optimizer)
    net(torch.randn(4, 1, 16, 16)).square().mean().backward()
    relative = {
        name: torch.cat([p.grad.flatten() for p in owned]).norm() / torch.cat([p.flatten() for p in owned]).norm()
        for name, owned in layers.parameters_of(net).items()
    }
    expected = {name: (value / max(relative.values())).item() for name, value in relative.items()}
    optimizer.step()
    assert auto_rgn.factors == pytest.approx(expected, rel=1e-5)


def test_layers_of_zeros_and_layers_without_a_gradient() -> None:
    parameters = weights(0.0, 1.0, 1.0, 1.0)
    optimizer = sgd(parameters)
    auto_rgn = AutoRGN(optimizer)
    for parameter, grad in zip(parameters[:3], (1.0, 2.0, 4.0), strict=True):
        parameter.grad = torch.tensor([grad, 0.0])
    optimizer.step()
    assert auto_rgn.factors == {"a": 1.0, "b": 0.5, "c": 1.0, "d": 1.0}
    assert parameters[3].tolist() == [1.0, 0.0]


def test_a_step_without_any_gradient_changes_nothing() -> None:
    parameters = weights(1.0, 1.0)
    optimizer = sgd(parameters)
    auto_rgn = AutoRGN(optimizer)
    optimizer.step()
    assert auto_rgn.factors == {"a": 1.0, "b": 1.0}


def test_a_resumed_run_goes_on_exactly() -> None:
    def run(parameters: list[nn.Parameter], optimizer: torch.optim.SGD, steps: range) -> None:
        for step in steps:
            for number, parameter in enumerate(parameters):
                parameter.grad = torch.tensor([0.1 * (number + 1), 0.1 * ((step * (number + 2)) % 5)])
            optimizer.step()

    whole = weights(1.0, 2.0, 3.0)
    optimizer = sgd(whole, lr=0.1)
    AutoRGN(optimizer)
    run(whole, optimizer, range(3))
    parts = copy.deepcopy(whole)
    resumed = sgd(parts, lr=0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    AutoRGN(resumed)
    run(whole, optimizer, range(3, 8))
    run(parts, resumed, range(3, 8))
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


def test_mistakes_are_named() -> None:
    with pytest.raises(OptimizerError, match="batches must be at least 1, not 0"):
        AutoRGN(sgd(weights(1.0, 2.0)), batches=0)
    with pytest.raises(OptimizerError, match="make up one"):
        AutoRGN(torch.optim.SGD(weights(1.0, 2.0)))
    optimizer = sgd(weights(1.0, 2.0))
    auto_rgn = AutoRGN(optimizer)
    with pytest.raises(OptimizerError, match="a AutoRGN is attached to this optimizer already"):
        MetaLR(optimizer)
    auto_rgn.detach()
    MetaLR(optimizer)
