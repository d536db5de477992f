"""The layers of timm models, from timm's own ``group_matcher``."""

from typing import Any

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models import group_parameters
from torch import nn

from layertune import LayerMap, ModelError
from layertune import map_layers as map_traced_layers
from layertune.layers.layer import Granularity
from layertune.layers.names import plain_name, unwrap

__all__ = ["map_layers"]


def map_layers(model: nn.Module, coarse: bool = False) -> LayerMap:
    """Place every parameter of a timm model in a layer, without an example input.

    Args:
        model: A timm model. It may be made with ``features_only=True``, have another classifier or stem, or be wrapped
            by ``torch.compile`` or DDP.
        coarse: Whether layers are timm's coarse groups (stages) instead of its fine ones (blocks).

    Returns:
        The layers of the model's ``group_matcher``, stem first, classifier last. A model without a ``group_matcher`` is
        run once on fake tensors of its own input size.

    Raises:
        ModelError: The model has neither a ``group_matcher`` nor an input size of its own.

    Example:
        >>> import timm
        >>> layers = map_layers(timm.create_model("resnet18"))
        >>> layers.d, layers[0].parameters, layers.head.name
        (10, ('conv1.weight', 'bn1.weight', 'bn1.bias'), 'fc')
    """
    net = unwrap(model)
    matcher = getattr(net, "group_matcher", None)
    granularity: Granularity = "stage" if coarse else "block"
    if matcher is None:
        return map_traced_layers(net, torch.empty(2, *_input_size(net)), granularity=granularity)
    numbers = group_parameters(net, matcher(coarse=coarse), reverse=True)
    by_name: dict[str, int] = {plain_name(name): number for name, number in numbers.items()}
    return map_traced_layers(net, matcher=by_name.__getitem__, granularity=granularity)


def _input_size(net: nn.Module) -> tuple[int, ...]:
    """Return channels, height and width: the model's own size, with the channels that its stem takes."""
    config: Any = getattr(net, "pretrained_cfg", None) or {}
    size = config.get("input_size")
    stem = next((module for module in net.modules() if isinstance(module, nn.Conv2d)), None)
    if size is None or stem is None:
        raise ModelError(
            f"{type(net).__name__} has no group_matcher and no input size of its own; use "
            "layertune.map_layers(model, example_input) and layertune.param_groups"
        )
    # A transformer that is made with `img_size=` refuses the size that its weights were trained at.
    own_sizes = (module.img_size for module in net.modules() if isinstance(module, PatchEmbed))
    height, width = next(filter(None, own_sizes), size[1:])
    return (stem.in_channels, int(height), int(width))
