"""How the param groups of an optimizer make up layers."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from layertune.errors import OptimizerError
from layertune.rates.attachment import group_layer_names

__all__ = ["Layers", "Layout"]

Layers = Mapping[str, Sequence[Tensor]]


class Layout(NamedTuple):
    """Which parameters belong to which layer.

    A *section* is the part of one param group that lies in one layer. Groups of one ``"layer"`` are that layer's
    sections, a group without that key is a layer on its own; where layers are given by their parameters, a group is cut
    into sections.

    Attributes:
        key: the groups it was read from, by identity and length.
        names: layers in the order of the groups, or as they were given.
        sections: for each group the section of each of its parameters.
        group_of: the group of each section.
        layer_of: the layer of each section.
        first: the first section of each layer, whose learning rate stands for the layer's.
        members: 0/1 matrix of layers x sections, on the parameters' device.
        half: whether some parameter has half precision.
    """

    key: tuple[int, ...]
    names: list[str]
    sections: list[list[int]]
    group_of: list[int]
    layer_of: list[int]
    first: list[int]
    members: Tensor
    half: bool

    @classmethod
    def of(cls, optimizer: Optimizer, layers: Layers | None = None) -> Self:
        """Read the layout off an optimizer.

        Args:
            optimizer: with at least one parameter.
            layers: the parameters of each layer; by the groups themselves if ``None``.

        Raises:
            OptimizerError: the optimizer has no parameters, or has some that are in none of the given layers.
        """
        groups = optimizer.param_groups
        device = next((parameter.device for group in groups for parameter in group["params"]), None)
        if device is None:
            raise OptimizerError("this optimizer has no parameters; give it the model's param groups")
        labels = _group_labels(groups) if layers is None else _parameter_labels(groups, layers)
        pairs = list(dict.fromkeys((i, label) for i, row in enumerate(labels) for label in row))
        held = dict.fromkeys(label for _, label in pairs)
        names = [name for name in layers if name in held] if layers is not None else list(held)
        layer_of = [names.index(label) for _, label in pairs]
        # Sums of many small terms: float64 wherever the device has it.
        members = torch.zeros(len(names), len(pairs), dtype=torch.float32 if device.type == "mps" else torch.float64)
        members[layer_of, range(len(pairs))] = 1.0
        return cls(
            key=_key(optimizer),
            names=names,
            sections=[[pairs.index((i, label)) for label in row] for i, row in enumerate(labels)],
            group_of=[group for group, _ in pairs],
            layer_of=layer_of,
            first=[layer_of.index(layer) for layer in range(len(names))],
            members=members.to(device),
            half=any(parameter.dtype.itemsize < 4 for group in groups for parameter in group["params"]),
        )

    @property
    def whole(self) -> bool:
        """Whether every group lies in one layer."""
        return len(set(self.group_of)) == len(self.group_of)

    @property
    def first_groups(self) -> list[int]:
        """The group of each layer whose learning rate stands for the layer's."""
        return [self.group_of[section] for section in self.first]

    def depths(self, groups: Sequence[dict[str, Any]]) -> list[int]:
        """The depth of each layer, as its groups say it; its place in their order where they do not."""
        return [int(groups[group].get("depth", place)) for place, group in enumerate(self.first_groups, 1)]

    def fits(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer still has the groups that this was read from."""
        return self.key == _key(optimizer)

    def spread(self, values: Tensor) -> Tensor:
        """One value a layer -> one a section; not by a list as index, whose copy to a GPU waits for it."""
        return torch.stack([values[layer] for layer in self.layer_of])

    def read_scales(self, groups: Sequence[dict[str, Any]]) -> Tensor:
        """The factor of each layer, from ``group["meta_scale"]``; 1 where nothing was learned yet."""
        scales = []
        for section in self.first:
            group = groups[self.group_of[section]]
            scale = group.get("meta_scale", 1.0)
            if isinstance(scale, Tensor):
                scale = scale[self._place(section)] if scale.ndim else scale
                scales.append(scale.to(self.members, non_blocking=True))
            else:
                scales.append(self.members.new_full((), scale))
        return torch.stack(scales)

    def group_scales(self, groups: Sequence[dict[str, Any]]) -> list[float]:
        """The factor of each group as a number, where every group is ``whole``; waits for the device."""
        scales = self.read_scales(groups).tolist()
        factors = {group: scales[layer] for group, layer in zip(self.group_of, self.layer_of, strict=True)}
        return [factors.get(number, 1.0) for number in range(len(groups))]

    def write_scales(self, groups: Sequence[dict[str, Any]], scales: Tensor) -> None:
        """Put the factor of each layer into its groups: a number, or one for each section of a group that is cut."""
        for number, group in enumerate(groups):
            layers = [layer for layer, of in zip(self.layer_of, self.group_of, strict=True) if of == number]
            if layers:
                group["meta_scale"] = (
                    scales[layers[0]].clone() if len(layers) == 1 else torch.stack([scales[i] for i in layers])
                )

    def _place(self, section: int) -> int:
        return section - self.group_of.index(self.group_of[section])


def _group_labels(groups: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [[name] * len(group["params"]) for name, group in zip(group_layer_names(groups), groups, strict=True)]


def _parameter_labels(groups: Sequence[dict[str, Any]], layers: Layers) -> list[list[str]]:
    if not isinstance(layers, Mapping):
        raise OptimizerError(
            f"layers= takes the parameters of each layer by name, not a {type(layers).__name__}; a LayerMap gives them "
            "as map.parameters_of(model)"
        )
    held = [(id(parameter), name) for name, parameters in layers.items() for parameter in parameters]
    layer_of = dict(held)
    doubled = sorted({name for key, name in held if layer_of[key] != name})
    if doubled:
        raise OptimizerError(f"some parameters of {doubled[:5]} are in a later layer too; give each to one layer")
    parameters = [parameter for group in groups for parameter in group["params"]]
    missing = [tuple(parameter.shape) for parameter in parameters if id(parameter) not in layer_of]
    if missing:
        raise OptimizerError(
            f"{len(missing)} of the optimizer's {len(parameters)} parameters are in none of the {len(layers)} given "
            f"layers (their shapes: {missing[:5]}); give the layers of the very model that the optimizer trains"
        )
    return [[layer_of[id(parameter)] for parameter in group["params"]] for group in groups]


def _key(optimizer: Optimizer) -> tuple[int, ...]:
    return tuple(number for group in optimizer.param_groups for number in (id(group), len(group["params"])))
