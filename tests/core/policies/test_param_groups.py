"""Layers to param groups, and freezing that costs no backward pass."""

import importlib
from typing import Any

import pytest
import torch
from torch import nn

from layertune import (
    AllLayers,
    BiDirectional,
    LastLayer,
    LayerDecay,
    LayerWise,
    ModelError,
    OptimizerError,
    PolicyError,
    freeze,
    map_layers,
    param_groups,
)
from small_networks import Shared, SmallResNet, SmallTransformer, SmallUNet, image


def state(net: nn.Module) -> list[Any]:
    return [(name, id(p), p.requires_grad, p._version) for name, p in net.named_parameters()]


def test_one_group_a_layer_with_its_rate():
    net = SmallUNet()
    layers = map_layers(net, image())
    groups = param_groups(net, layers, lr=1e-2, policy=BiDirectional(2, 3), head_lr=1e-1)
    assert [(group["layer"], group["depth"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("down.0", 1, 1e-2, 0.0),
        ("merge.0", 4, 1e-2, 0.0),
        ("merge.1", 5, 1e-2, 0.0),
        ("heads.1", 6, 1e-1, 0.0),
    ]
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    assert [tuple(names[id(p)] for p in group["params"]) for group in groups] == [
        layers[index].parameters for index in (0, 3, 4, 5)
    ]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_any_optimizer_takes_them(kind: type[torch.optim.Optimizer]):
    net = SmallResNet()
    groups = param_groups(net, map_layers(net, image()), lr=1e-2)
    optimizer = kind(groups)
    assert [group["layer"] for group in optimizer.param_groups][:2] == ["stem.0", "blocks.0"]
    reloaded = kind(param_groups(net, map_layers(net, image()), lr=1.0))
    reloaded.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in reloaded.param_groups] == [1e-2] * 10


def test_decay_spares_vectors_and_named_parameters():
    net = SmallTransformer()
    layers = map_layers(net, torch.empty(2, 1, 8, 8))
    groups = param_groups(net, layers, lr=1.0, weight_decay=0.1, no_weight_decay=["pos_embed", "cls_token"])
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    vectors = {name for name, parameter in net.named_parameters() if parameter.ndim < 2}
    assert decayed == set(names.values()) - vectors - {"pos_embed", "cls_token"}
    assert [(group["layer"], group["weight_decay"]) for group in groups][:2] == [
        ("patch_embed", 0.1),
        ("patch_embed", 0.0),
    ]
    assert len({group["lr"] for group in groups}) == 1


def test_decay_follows_timms_own_choice():
    timm = importlib.import_module("timm")
    from timm.optim import param_groups_weight_decay

    net = timm.create_model("test_vit", num_classes=3)
    kept = net.no_weight_decay() & {name for name, _ in net.named_parameters()}
    groups = param_groups(
        net, map_layers(net, torch.empty(2, 3, 160, 160)), lr=1.0, weight_decay=0.1, no_weight_decay=kept
    )
    theirs = {id(p) for g in param_groups_weight_decay(net, 0.1, kept) if g["weight_decay"] for p in g["params"]}
    assert {id(p) for group in groups if group["weight_decay"] for p in group["params"]} == theirs


def test_parameters_that_require_no_gradient_stay_out():
    net = SmallUNet()
    layers = map_layers(net, image())
    net.down[0][0].weight.requires_grad_(False)
    net.down[1].requires_grad_(False)
    groups = param_groups(net, layers, lr=1.0)
    assert [group["layer"] for group in groups] == ["down.0", "down.2", "merge.0", "merge.1", "heads.1"]
    assert len(groups[0]["params"]) == len(layers[0].parameters) - 1


@pytest.mark.slow
def test_groups_of_a_compiled_model_hold_the_plain_models_parameters():
    net = SmallUNet()
    groups = param_groups(torch.compile(net), map_layers(net, image()), lr=1.0)
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in net.parameters()}


# Freezing


def test_freezing_and_undoing():
    net = SmallUNet()
    layers = map_layers(net, image())
    net.down[1][0].weight.requires_grad_(False)
    before = state(net)
    frozen = freeze(net, layers, BiDirectional(2, 3))
    assert set(frozen.names) == {*layers[1].parameters, *layers[2].parameters} - {"down.1.0.weight"}
    assert {name for name, p in net.named_parameters() if not p.requires_grad} == {*frozen.names, "down.1.0.weight"}
    frozen.undo()
    assert state(net) == before, "what the user froze stays frozen"
    net.down[2].requires_grad_(False)
    frozen.undo()
    assert not net.down[2][0].weight.requires_grad, "a second undo does nothing"


def test_freezing_is_undone_on_an_exception():
    net = SmallUNet()
    before = state(net)
    with pytest.raises(RuntimeError, match="stop"), freeze(net, map_layers(net, image()), LastLayer()):
        raise RuntimeError("stop")
    assert state(net) == before


def test_freezing_nothing_says_so():
    net = SmallUNet()
    with pytest.warns(UserWarning, match="freezes none of the 6 layers"):
        freeze(net, map_layers(net, image()), AllLayers())


def backward_calls(net: nn.Module) -> list[str]:
    """Modules with parameters whose backward ran, through one real training step."""
    ran: list[str] = []
    handles = []
    for name, module in net.named_modules():
        if list(module.parameters(recurse=False)):

            def note(_: nn.Module, __: Any, output: torch.Tensor, name: str = name) -> None:
                if output.requires_grad:
                    output.register_hook(lambda _: ran.append(name))

            handles.append(module.register_forward_hook(note))
    net(torch.randn(2, 1, 16, 16)).sum().backward()
    for handle in handles:
        handle.remove()
    return ran[::-1]


def test_no_backward_runs_below_the_first_tuned_layer():
    net = SmallResNet()
    layers = map_layers(net, image())
    everything = backward_calls(net)
    assert everything[:2] == ["stem.0", "stem.1"]
    net.zero_grad()
    with freeze(net, layers, LayerWise(first=8)):
        ran = backward_calls(net)
    assert {name.rpartition(".")[0] or name for name in ran} == {"blocks.6", "blocks.7", "fc"}
    assert {name for name, p in net.named_parameters() if p.grad is not None} == {
        name for layer in layers[7:] for name in layer.parameters
    }
    net.zero_grad()
    with freeze(net, layers, LastLayer()):
        assert backward_calls(net) == ["fc"]
    net.zero_grad()
    with freeze(net, layers, BiDirectional(2, 9)):
        assert backward_calls(net) == everything, "gradients pass through the frozen middle to the tuned stem"
        assert {name for name, p in net.named_parameters() if p.grad is not None} == {
            *layers[0].parameters,
            *layers[9].parameters,
        }


def test_frozen_layers_do_not_move_and_tuned_ones_do():
    net = SmallResNet()
    layers = map_layers(net, image())
    policy = BiDirectional(3, 6)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    optimizer = torch.optim.SGD(param_groups(net, layers, lr=0.1, policy=policy))
    net(torch.randn(4, 1, 16, 16)).pow(2).sum().backward()
    optimizer.step()
    moved = {name for name, parameter in net.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved <= {name for layer in [*layers[:2], *layers[6:]] for name in layer.parameters}
    assert {layer.name for layer in layers if moved & set(layer.parameters)} == {
        layer.name for layer in [*layers[:2], *layers[6:]]
    }


def test_a_shared_parameter_is_in_one_group():
    net = Shared()
    groups = param_groups(net, map_layers(net, image()), lr=1.0)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted({id(parameter) for parameter in net.parameters()})


# One clear error, and nothing changed


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"policy": BiDirectional(2, 6)}, PolicyError, "n must be below d = 6"),
        ({"policy": lambda _: [0.0] * 6}, PolicyError, "leaves nothing to train"),
        ({"policy": lambda _: [1.0]}, PolicyError, "one finite scale"),
        (
            {"weight_decay": 0.1, "no_weight_decay": ["nothing"]},
            OptimizerError,
            r"no parameter of this network: \['not",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str):
    net = SmallUNet()
    layers = map_layers(net, image())
    before = state(net)
    with pytest.raises(error, match=message):
        param_groups(net, layers, lr=1.0, **options)
    if error is PolicyError:
        with pytest.raises(error, match=message):
            freeze(net, layers, options["policy"])
    assert state(net) == before


def test_a_map_of_another_network():
    net = SmallUNet()
    layers = map_layers(SmallResNet(), image())
    before = state(net)
    with pytest.raises(ModelError, match="does not fit SmallUNet"):
        param_groups(net, layers, lr=1.0)
    with pytest.raises(ModelError, match="does not fit SmallUNet"):
        freeze(net, layers, LastLayer())
    assert state(net) == before


def test_nothing_that_is_tuned_requires_a_gradient():
    net = SmallUNet()
    layers = map_layers(net, image())
    net.requires_grad_(False)
    with pytest.raises(OptimizerError, match="no parameter of the 6 tuned layers requires a gradient"):
        param_groups(net, layers, lr=1.0, policy=LayerDecay(0.5))
