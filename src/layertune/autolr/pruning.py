"""AutoLR's pruning: remove residual blocks near the output that fine-tuning hardly moves."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layertune.autolr.weight_variation import weight_variation
from layertune.errors import ModelError
from layertune.layers.layer import LayerMap, parameters_by_layer
from layertune.layers.names import named_parameters, unwrap
from layertune.layers.trace import trace
from layertune.restoring import kept_attributes, kept_random_state

__all__ = ["prune_blocks", "removable_blocks"]


def removable_blocks(model: nn.Module, layers: LayerMap, *example_inputs: Any) -> list[str]:
    """Return the blocks that can be removed: residual blocks in the deeper half with equal input and output shapes.

    Args:
        model: The network. Its forward pass runs once, in eval mode, and changes nothing.
        layers: The map of the network, by blocks.
        *example_inputs: Arguments of the forward pass.

    Returns:
        Names of the blocks, shallow to deep. The first block of a stage changes the shape and is not among them.

    Example:
        >>> from layertune import map_layers
        >>> class Block(nn.Sequential):
        ...     def forward(self, x):
        ...         return x + super().forward(x)
        >>> blocks = (Block(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()) for _ in range(4))
        >>> net, image = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(32, 2)), torch.zeros(2, 2, 4, 4)
        >>> removable_blocks(net, map_layers(net, image), image)
        ['2', '3']
    """
    net = unwrap(model)
    residual = trace(net, *example_inputs).residual
    deep = [layer.name for layer in layers[:-1] if layer.name in residual and 2 * layer.depth > layers.d]
    calls: dict[str, list[bool]] = {name: [] for name in deep}
    with kept_random_state(), kept_attributes(net), torch.no_grad():
        for name in deep:
            net.get_submodule(name).register_forward_hook(_shape_watch(calls[name]), with_kwargs=True)
        net.eval()(*example_inputs)
    return [name for name in deep if calls[name] == [True]]


def prune_blocks(
    model: nn.Module,
    layers: LayerMap,
    *example_inputs: Any,
    before: Mapping[str, Tensor],
    validate: Callable[[nn.Module], float],
) -> list[str]:
    """Remove the high-level blocks that an ordinary fine-tuning moved least, while validation does not fall (AutoLR).

    One block at a time is replaced by ``nn.Identity``, the one with the least weight variation first. The first block
    without which the score is lower is restored and ends the search. For ResNet-50 the authors remove the last two
    blocks of the last stage. Map the pruned network again with ``map_layers``, and start from the weights ``before``.

    Args:
        model: The network after an ordinary fine-tuning. Blocks are removed in place.
        layers: The map of the network, by blocks.
        *example_inputs: Arguments of the forward pass.
        before: A copy of the ``state_dict`` from before the fine-tuning.
        validate: A function that returns the validation score of a network, higher is better. It may fine-tune a copy.

    Returns:
        Names of the removed blocks, in the order of their removal.

    Raises:
        ModelError: ``before`` lacks a weight of the network.

    Example:
        >>> from layertune import map_layers
        >>> class Block(nn.Sequential):
        ...     def forward(self, x):
        ...         return x + super().forward(x)
        >>> blocks = (Block(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()) for _ in range(4))
        >>> net, image = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(32, 2)), torch.zeros(2, 2, 4, 4)
        >>> before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        >>> with torch.no_grad():
        ...     _ = net[2][0].weight.add_(1)
        >>> prune_blocks(net, map_layers(net, image), image, before=before, validate=lambda net: 0.9)
        ['3', '2']
    """
    net = unwrap(model)
    variations = _variations(net, layers, before)
    removed: list[str] = []
    score = validate(model)
    for name in sorted(removable_blocks(net, layers, *example_inputs), key=variations.__getitem__):
        block = net.get_submodule(name)
        net.set_submodule(name, nn.Identity())
        without = validate(model)
        if not without >= score:
            net.set_submodule(name, block)
            break
        removed.append(name)
        score = without
    return removed


def _variations(net: nn.Module, layers: LayerMap, before: Mapping[str, Tensor]) -> dict[str, float]:
    parameters_by_layer(net, layers)
    weights = {name: weight for name, weight in named_parameters(net).items() if weight.ndim > 1}
    missing = [name for name in weights if name not in before]
    if missing:
        raise ModelError(
            f"before lacks {missing[:5]}; give a copy of this network's state_dict() from before its fine-tuning"
        )
    variations = {}
    for layer in layers:
        held = [name for name in layer.parameters if name in weights]
        if held:
            variations[layer.name] = weight_variation([before[name] for name in held], [weights[name] for name in held])
    return variations


def _shape_watch(calls: list[bool]) -> Callable[..., None]:
    """Return a forward hook that notes whether input and output are one tensor each, of equal shape."""

    def watch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        one = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(output, Tensor)
        calls.append(one and args[0].shape == output.shape)

    return watch
