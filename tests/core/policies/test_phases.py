"""Phases: which parameters move in which phase."""

from typing import Any

import pytest
import torch
from torch import nn

from layertune import (
    LPFT,
    GradualUnfreezing,
    LastLayer,
    LayerWise,
    PhasedFreezing,
    Phases,
    PolicyError,
    map_layers,
    param_groups,
)
from layertune.policies.phases import named_phases
from small_networks import SmallResNet, image


def moved_depths(phases: Phases | str, count: int) -> list[list[int]]:
    """The depths of the layers whose parameters moved in each of some phases of two steps."""
    torch.manual_seed(0)
    net = SmallResNet()
    layers = map_layers(net, image(16))
    optimizer = torch.optim.AdamW(param_groups(net, layers, lr=0.01, weight_decay=0.1))
    moved = []
    with PhasedFreezing(net, layers, phases) as freezing:
        for phase in range(1, count + 1):
            freezing.enter(phase)
            before = {name: [p.clone() for p in owned] for name, owned in layers.parameters_of(net).items()}
            for _ in range(2):
                optimizer.zero_grad()
                net(torch.randn(4, 1, 16, 16)).square().mean().backward()
                optimizer.step()
            after = layers.parameters_of(net)
            moved.append(
                sorted(
                    layer.depth
                    for layer in layers
                    if any(not torch.equal(a, b) for a, b in zip(before[layer.name], after[layer.name], strict=True))
                )
            )
    assert all(parameter.requires_grad for parameter in net.parameters())
    return moved


def test_gradual_unfreezing_moves_one_depth_more_in_each_phase() -> None:
    expected = [list(range(first, 11)) for first in range(10, 0, -1)]
    assert moved_depths(GradualUnfreezing(), 12) == [*expected, expected[-1], expected[-1]]


def test_lp_ft_moves_the_head_and_then_all() -> None:
    assert moved_depths(LPFT(), 3) == [[10], list(range(1, 11)), list(range(1, 11))]


def test_a_resumed_run_enters_its_phase_at_once_and_a_lower_one_drops_gradients() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    freezing = PhasedFreezing(net, map_layers(net, torch.empty(1, 4)), GradualUnfreezing())
    assert (freezing.count, freezing.phase) == (3, 0)
    freezing.enter(3)
    net(torch.ones(1, 4)).sum().backward()
    freezing.enter(2)
    assert [layer.weight.grad is None for layer in net] == [True, False, False]
    freezing.enter(9)
    assert freezing.phase == 3
    freezing.undo()
    assert freezing.phase == 0


def test_what_the_user_froze_stays_frozen() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    net[1].bias.requires_grad_(False)
    with PhasedFreezing(net, map_layers(net, torch.empty(1, 4)), LPFT()) as freezing:
        freezing.enter(1)
        freezing.enter(2)
        assert not net[1].bias.requires_grad
        assert net[1].weight.requires_grad
    assert not net[1].bias.requires_grad


def test_statistics_of_frozen_norms_stand_still_where_asked() -> None:
    torch.manual_seed(0)
    net = SmallResNet()
    with PhasedFreezing(net, map_layers(net, image(16)), LPFT(), statistics=True) as freezing:
        freezing.enter(1)
        net.train()(torch.randn(4, 1, 16, 16))
        assert not net.stem[1].running_mean.any()
        freezing.enter(2)
        net(torch.randn(4, 1, 16, 16))
        assert net.stem[1].running_mean.any()


def test_phases_by_name() -> None:
    assert moved_depths("lp_ft", 2) == [[10], list(range(1, 11))]
    assert moved_depths("gradual_unfreezing", 2) == [[10], [9, 10]]


@pytest.mark.parametrize(
    ("phases", "message"),
    [("lpft", "no phases 'lpft'; the names are lp_ft"), (LPFT, "not <function LPFT"), (None, "not None")],
)
def test_what_is_no_phases_is_refused(phases: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        named_phases(phases)


def test_mistakes_are_named() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    layers = map_layers(net, torch.empty(1, 4))
    with pytest.raises(PolicyError, match="no phase 0"):
        PhasedFreezing(net, layers, LPFT()).enter(0)
    with pytest.raises(PolicyError, match="these phases are none"):
        PhasedFreezing(net, layers, lambda _: [])
    with pytest.raises(PolicyError, match="depths 1 to 2"):
        PhasedFreezing(net, layers, lambda _: [LastLayer(), LayerWise(3)])
