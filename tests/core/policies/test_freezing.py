"""Frozen statistics: what a frozen layer computes stays what it was."""

import pytest
import torch
from torch import Tensor, nn

from layertune import BiDirectional, LastLayer, freeze, map_layers
from small_networks import SmallResNet, SmallUNet, image


def statistics(net: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in net.named_buffers()}


def moved(net: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """The norms whose running statistics have moved."""
    return {name.rpartition(".")[0] for name, buffer in net.named_buffers() if not torch.equal(buffer, before[name])}


def trained_step(net: nn.Module) -> None:
    net.train()
    net(torch.randn(4, 1, 16, 16)).square().mean().backward()


def test_by_default_the_statistics_of_frozen_layers_follow_the_data() -> None:
    net = SmallUNet()
    before = statistics(net)
    with freeze(net, map_layers(net, image()), LastLayer()):
        trained_step(net)
    assert moved(net, before) == {name.rpartition(".")[0] for name in before}


def test_frozen_statistics_stay_and_those_of_trained_layers_move() -> None:
    net = SmallUNet()
    layers = map_layers(net, image())
    before = statistics(net)
    with freeze(net, layers, BiDirectional(2, 3), statistics=True):
        trained_step(net)
    frozen = {name.rpartition(".")[0] for layer in layers[1:3] for name in layer.parameters}
    norms = {name.rpartition(".")[0] for name in before}
    assert moved(net, before) == norms - frozen


def test_a_frozen_network_computes_in_train_mode_what_it_computes_in_evaluation() -> None:
    net = SmallResNet()
    for _ in range(3):
        trained_step(net)  # statistics of their own
    features = nn.Sequential(*list(net.children())[:-1])
    x = torch.randn(4, 1, 16, 16)
    expected = net.eval()(x)
    with freeze(net, map_layers(net, image()), LastLayer(), statistics=True):
        assert torch.equal(net.train()(x), expected)
        assert all(module.training for module in features.modules())
    assert not torch.equal(net.train()(x), expected), "after the end they are trained again"


def test_undoing_leaves_no_hook_also_after_a_forward_that_failed() -> None:
    net = SmallUNet()
    frozen = freeze(net, map_layers(net, image()), LastLayer(), statistics=True)
    with pytest.raises(RuntimeError):
        net(torch.randn(4, 3, 16, 16))
    frozen.undo()
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_norm_without_parameters_goes_with_its_parent() -> None:
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False)), nn.Flatten(), nn.Linear(784, 2)
    )
    before = statistics(net)
    with freeze(net, map_layers(net, image()), LastLayer(), statistics=True):
        net.train()(torch.randn(4, 1, 16, 16))
    assert moved(net, before) == set()


def test_a_compiled_network_keeps_frozen_statistics() -> None:
    net = SmallUNet()
    before = statistics(net)
    with freeze(net, map_layers(net, image()), LastLayer(), statistics=True):
        torch.compile(net, backend="eager")(torch.randn(4, 1, 16, 16))
    assert moved(net, before) == set()
