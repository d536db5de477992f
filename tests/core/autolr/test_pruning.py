"""Blocks near the output that may go, one at a time, while validation does not fall."""

import pytest
import torch
from torch import nn

from layertune import ModelError, map_layers, prune_blocks, removable_blocks
from small_networks import SmallResNet, image


def moved(net: nn.Module, steps: dict[str, float]) -> dict[str, torch.Tensor]:
    """Add to the weights of some blocks; returns the state before."""
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        for block, size in steps.items():
            net.get_submodule(block).conv1.weight.add_(size)
    return before


def test_blocks_of_the_deeper_half_that_keep_the_shape():
    net = SmallResNet()
    state = torch.get_rng_state()
    # Ten layers; blocks 2, 4 and 6 halve the resolution, so of the depths 6 to 9 the blocks 5 and 7 remain.
    assert removable_blocks(net, map_layers(net, image()), image()) == ["blocks.5", "blocks.7"]
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
    assert torch.equal(state, torch.get_rng_state())


def test_the_least_variation_goes_first_and_the_search_ends_where_validation_falls():
    net = SmallResNet()
    layers = map_layers(net, image())
    before = moved(net, {"blocks.5": 0.1, "blocks.7": 0.2})
    scores = {(): 0.8, ("blocks.5",): 0.8, ("blocks.5", "blocks.7"): 0.79}

    def validate(pruned: nn.Module) -> float:
        return scores[tuple(n for n in ("blocks.5", "blocks.7") if isinstance(pruned.get_submodule(n), nn.Identity))]

    kept = net.get_submodule("blocks.7")
    assert prune_blocks(net, layers, image(), before=before, validate=validate) == ["blocks.5"]
    assert net.get_submodule("blocks.7") is kept
    assert map_layers(net, image()).d == 9


def test_a_score_that_is_no_number_counts_as_a_fall():
    net = SmallResNet()
    scores = iter([0.5, float("nan")])
    before = moved(net, {"blocks.5": 0.1})
    removed = prune_blocks(net, map_layers(net, image()), image(), before=before, validate=lambda _: next(scores))
    assert removed == []
    assert not isinstance(net.get_submodule("blocks.7"), nn.Identity)


def test_the_network_still_runs_without_its_blocks():
    net = SmallResNet()
    removed = prune_blocks(net, map_layers(net, image()), image(), before=moved(net, {}), validate=lambda _: 1.0)
    assert removed == ["blocks.5", "blocks.7"]
    assert net(torch.zeros(2, 1, 16, 16)).shape == (2, 3)


def test_a_state_of_another_network_is_refused():
    net = SmallResNet()
    with pytest.raises(ModelError, match=r"before lacks \['stem.0.weight'.*give a copy of this network's state_dict"):
        prune_blocks(net, map_layers(net, image()), image(), before={}, validate=lambda _: 1.0)
