"""L2-SP against autograd of the penalty as the paper writes it."""

from typing import Any

import pytest
import torch
from torch import nn

from layertune import L2SP, OptimizerError, map_layers
from small_networks import SmallResNet, image


def moved_network() -> tuple[SmallResNet, dict[str, torch.Tensor], L2SP]:
    """A network some way from its start, the start, and the penalty that was made there."""
    torch.manual_seed(0)
    net = SmallResNet()
    start = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    penalty = L2SP(net, map_layers(net, image(16)), alpha=0.3, beta=0.05)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    return net, start, penalty


def written_penalty(net: nn.Module, start: dict[str, torch.Tensor]) -> torch.Tensor:
    named = dict(net.named_parameters())
    old = sum((p - start[name]).square().sum() for name, p in named.items() if not name.startswith("fc."))
    new = sum(p.square().sum() for name, p in named.items() if name.startswith("fc."))
    return 0.3 / 2 * old + 0.05 / 2 * new


def test_value_and_gradient_are_those_of_the_written_penalty() -> None:
    net, start, penalty = moved_network()
    expected = written_penalty(net, start)
    torch.testing.assert_close(penalty(), expected)
    parameters = list(net.parameters())
    grads = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(torch.autograd.grad(penalty(), parameters), grads)
    net(torch.randn(4, 1, 16, 16)).square().mean().backward()
    before = [p.grad.clone() for p in parameters]
    penalty.add_gradient(torch.optim.SGD(parameters))
    for parameter, own, grad in zip(parameters, before, grads, strict=True):
        torch.testing.assert_close(parameter.grad, own + grad)


def test_parameters_without_a_gradient_or_of_another_optimizer_get_none() -> None:
    net, _, penalty = moved_network()
    held, left, without = list(net.parameters())[:3]
    held.grad, left.grad = torch.zeros_like(held), torch.zeros_like(left)
    penalty.add_gradient(torch.optim.SGD([held, without]))
    assert held.grad.any()
    assert not left.grad.any()
    assert without.grad is None


def test_new_parameters_by_name() -> None:
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        net[0].weight.fill_(2.0)
        net[1].weight.fill_(3.0)
    layers = map_layers(net, torch.empty(1, 1))
    assert L2SP(net, layers, beta=1.0)().item() == pytest.approx(9 / 2)
    assert L2SP(net, layers, beta=1.0, new=["0.weight"])().item() == pytest.approx(4 / 2)
    assert L2SP(net, layers, beta=1.0, new=[])().item() == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "finite and >= 0, not -1.0 and 0.01"),
        ({"beta": float("nan")}, "finite and >= 0"),
        ({"new": ["nowhere"]}, r"names no parameter of this network: \['nowhere'\]"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    net = SmallResNet()
    with pytest.raises(OptimizerError, match=message):
        L2SP(net, map_layers(net, image(16)), **options)


def test_a_second_decay_is_refused() -> None:
    net, _, penalty = moved_network()
    optimizer = torch.optim.AdamW(net.parameters())
    with pytest.raises(OptimizerError, match=r"weight_decay=0.01; set that to 0"):
        penalty.add_gradient(optimizer)
