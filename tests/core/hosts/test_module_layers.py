"""Layers that a user gave for a module, or for a network inside it, and layers that a trace finds."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layertune import ModelError, map_layers
from layertune.hosts.module_layers import find_layers, positional_inputs


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


class Module(nn.Module):
    """A network inside a module, beside another one whose parameters have the same names."""

    def __init__(self, other: nn.Module | None = None) -> None:
        super().__init__()
        self.net = network()
        self.other = other or nn.Identity()

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return self.net(x) * scale


def never() -> tuple[Any, ...]:
    raise AssertionError("no trace is needed")


def names(found: tuple[nn.Module, Any]) -> list[str]:
    return [layer.name for layer in found[1]]


def test_without_layers_the_module_is_traced_with_the_options() -> None:
    module = Module()
    found = find_layers(module, None, lambda: (torch.zeros(1, 4),), granularity="module")
    assert found[0] is module
    assert names(found) == ["net.0", "net.2"]


@pytest.mark.parametrize("wrap", [lambda module: module, torch.nn.DataParallel], ids=["plain", "wrapped"])
def test_layers_may_be_those_of_a_network_inside(wrap: Any) -> None:
    module = Module()
    layers = map_layers(module.net, torch.zeros(1, 4))
    for given in (layers, lambda _: layers):
        owner, found = find_layers(wrap(module), given, never)
        assert owner is module.net
        assert found is layers


def test_of_two_networks_alike_the_layers_are_those_of_the_one_that_trains() -> None:
    layers = map_layers(network(), torch.zeros(1, 4))
    module = Module(network().requires_grad_(False))
    assert find_layers(module, layers, never)[0] is module.net
    with pytest.raises(ModelError, match="the given layers fit net and other in Module"):
        find_layers(Module(network()), layers, never)


@pytest.mark.parametrize(("given", "message"), [(["net"], "got list"), (lambda _: 3, "got int")])
def test_what_is_no_map_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ModelError, match=f"layers= takes a layertune.LayerMap.*{message}"):
        find_layers(Module(), given, never)


def test_a_map_of_another_network_is_refused() -> None:
    other = map_layers(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2)), torch.zeros(1, 4))
    with pytest.raises(ModelError, match="no network in Module has exactly the 4 parameters of the given layers"):
        find_layers(Module(), other, never)


def test_named_inputs_get_their_places_also_for_a_wrapped_module() -> None:
    assert positional_inputs(network(), 1, 2) == (1, 2)
    for module in (nn.Bilinear(2, 2, 1), torch.nn.DataParallel(nn.Bilinear(2, 2, 1))):
        assert positional_inputs(module, "one", input2="two") == ("one", "two")
