"""Freezing the layers that a policy gives no learning rate."""

import warnings
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from torch import nn

from layertune.layers.layer_map import LayerMap, parameters_by_layer
from layertune.layers.names import modules_by_name, named_parameters
from layertune.policies.policies import Policy, scales_of

__all__ = ["Frozen", "freeze"]


class Frozen:
    """The handle of ``freeze``: ``undo()`` or the end of a ``with`` block lets the parameters train again.

    Args:
        parameters: The parameters to freeze, by name; they must require a gradient.
        norms: The norms whose running statistics are frozen too.

    Attributes:
        names: The names of the parameters that were frozen. Those that were frozen before are not among them.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], norms: Iterable[nn.Module] = ()) -> None:
        self.names = tuple(parameters)
        self._parameters = list(parameters.values())
        for parameter in self._parameters:
            parameter.requires_grad_(False)
        self._statistics = _FrozenStatistics(norms)

    def undo(self) -> None:
        """Let the parameters require a gradient and the statistics move again; a second call does nothing."""
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        self._parameters = []
        self._statistics.undo()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.undo()


def freeze(model: nn.Module, layers: LayerMap, policy: Policy, *, statistics: bool = False) -> Frozen:
    """Freeze the layers to which a policy gives scale 0, so that no backward pass runs below the first tuned layer.

    A batch norm has running statistics beside its parameters. By default they keep following the training data, as in
    the hosts' own training: a frozen batch norm then normalises by the batch, and its output in evaluation changes
    while the network trains. ``statistics=True`` freezes them too, as Keras and detectron2 do: the batch norms of
    frozen layers then normalise by their stored statistics in train mode as well. Use it for small batches, and where a
    frozen layer has to compute what it computed before.

    Args:
        model: The network.
        layers: The layers of this network.
        policy: Gives each layer a scale; the layers with scale 0 are frozen.
        statistics: Whether the running statistics of the norms in frozen layers are frozen too.

    Returns:
        A handle with ``undo()``, which is also a context manager.

    Raises:
        ModelError: The map belongs to another network.
        PolicyError: The policy does not fit the map, or freezes all layers.

    Example:
        >>> import torch
        >>> from layertune import LastLayer, map_layers
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2))
        >>> with freeze(net, map_layers(net, torch.empty(1, 1, 8, 8)), LastLayer()) as frozen:
        ...     frozen.names, net[0].weight.requires_grad
        (('0.weight', '0.bias'), False)
    """
    scales = scales_of(layers, policy)
    parameters_by_layer(model, layers)
    if all(scales):
        warnings.warn(f"the policy freezes none of the {len(layers)} layers, so freeze has no effect", stacklevel=2)
    fixed = {name for layer, scale in zip(layers, scales, strict=True) if not scale for name in layer.parameters}
    parameters = named_parameters(model)
    return Frozen(
        {name: p for name, p in parameters.items() if name in fixed and p.requires_grad},
        _norms_of(model, fixed) if statistics else (),
    )


class _FrozenStatistics:
    """Lets norms run in evaluation mode, whatever mode the network is in, by hooks on their forward.

    A norm that was only set to evaluation mode would be back in train mode with the next ``model.train()``.
    """

    def __init__(self, norms: Iterable[nn.Module]) -> None:
        self._training: dict[int, bool] = {}
        self._handles = []
        for norm in norms:
            self._handles.append(norm.register_forward_pre_hook(self._enter))
            self._handles.append(norm.register_forward_hook(self._leave, always_call=True))

    def undo(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _enter(self, norm: nn.Module, _: Any) -> None:
        self._training[id(norm)] = norm.training
        norm.training = False

    def _leave(self, norm: nn.Module, _: Any, __: Any) -> None:
        norm.training = self._training.pop(id(norm), norm.training)


def _norms_of(model: nn.Module, fixed: set[str]) -> list[nn.Module]:
    """The modules with running statistics whose parameters are all fixed; for one without, those of its parent."""
    norms = []
    for path, module in modules_by_name(model).items():
        if module._buffers.get("running_mean") is not None:
            names = _below(model, path) or _below(model, path.rpartition(".")[0])
            if names and fixed.issuperset(names):
                norms.append(module)
    return norms


def _below(model: nn.Module, path: str) -> list[str]:
    """The names of the parameters of a module and the modules in it."""
    return [name for name in named_parameters(model) if not path or name.startswith(f"{path}.")]
