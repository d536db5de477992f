"""How the param groups of an optimizer make up layers."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from layertune.errors import OptimizerError
from layertune.rates.attachment import group_layer_names

__all__ = ["Layers", "Sections"]

Layers = Mapping[str, Sequence[Tensor]]
Groups = Sequence[dict[str, Any]]


class Sections(NamedTuple):
    """Which parameters belong to which layer.

    A *section* is the part of one param group that lies in one layer. Groups of one ``"layer"`` are that layer's
    sections, and a group without that key is a layer on its own. Where layers are given by their parameters, a group is
    cut into sections.

    Attributes:
        key: The groups that this was read from, by identity and length.
        device: The device of their first parameter.
        names: The layers, in the order of the groups or as they were given.
        layer_names: The layer of each parameter, by group.
        of_parameter: The section of each parameter, by group.
        group_of: The group of each section.
        layer_of: The layer of each section.
        first: The first section of each layer.
        members: A 0/1 matrix of layers x sections, on the device of the parameters.
    """

    key: tuple[int, ...]
    device: torch.device
    names: list[str]
    layer_names: list[list[str]]
    of_parameter: list[list[int]]
    group_of: list[int]
    layer_of: list[int]
    first: list[int]
    members: Tensor

    @classmethod
    def of(cls, optimizer: Optimizer, layers: Layers | None = None) -> Self:
        """Read the sections from an optimizer.

        Args:
            optimizer: An optimizer with at least one parameter.
            layers: The parameters of each layer. Default: the layers that the groups name.

        Raises:
            OptimizerError: The optimizer has no parameters, or has some that are in none of the given layers.
        """
        groups = optimizer.param_groups
        device = _device(groups)
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
            device=device,
            names=names,
            layer_names=labels,
            of_parameter=[[pairs.index((i, label)) for label in row] for i, row in enumerate(labels)],
            group_of=[group for group, _ in pairs],
            layer_of=layer_of,
            first=[layer_of.index(layer) for layer in range(len(names))],
            members=members.to(device),
        )

    @property
    def whole(self) -> bool:
        """Whether every group lies in one layer."""
        return len(set(self.group_of)) == len(self.group_of)

    def leading_groups(self, groups: Groups) -> list[int]:
        """Return for each layer its first param group with a trained parameter, whose learning rate is the layer's."""
        trained = {
            section
            for group, row in zip(groups, self.of_parameter, strict=True)
            for parameter, section in zip(group["params"], row, strict=True)
            if parameter.requires_grad
        }
        leading = []
        for layer, first in enumerate(self.first):
            own = (section for section in sorted(trained) if self.layer_of[section] == layer)
            leading.append(self.group_of[next(own, first)])
        return leading

    def depths(self, groups: Groups) -> list[int]:
        """Return the depth of each layer as its groups give it, or else its place in their order."""
        return [int(groups[group].get("depth", place)) for place, group in enumerate(self.leading_groups(groups), 1)]

    def fits(self, optimizer: Optimizer) -> bool:
        """Return whether the optimizer still has the groups that this was read from, on the same device."""
        return self.key == _key(optimizer) and self.device == _device(optimizer.param_groups)

    def moved(self, groups: Groups) -> set[int]:
        """Return the sections that took part in the measured step: those with a parameter that had a gradient."""
        steps = [group.get("meta_step", {}).get("displacement", {}) for group in groups]
        return {self.of_parameter[number][index] for number, step in enumerate(steps) for index in step}

    def spread(self, values: Tensor) -> Tensor:
        """Repeat one value for each layer as one for each section."""
        # Not by a list as index: it would be copied to the GPU, which waits.
        return torch.stack([values[layer] for layer in self.layer_of])

    def read_scales(self, groups: Groups) -> Tensor:
        """Read the factor of each layer from ``group["meta_scale"]``; 1 where nothing was learned yet."""
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

    def group_scales(self, groups: Groups) -> list[float]:
        """Return the factor of each group as a number, where all groups are ``whole``. This waits for the device."""
        scales = self.read_scales(groups).tolist()
        factors = {group: scales[layer] for group, layer in zip(self.group_of, self.layer_of, strict=True)}
        return [factors.get(number, 1.0) for number in range(len(groups))]

    def write_scales(self, groups: Groups, scales: Tensor) -> None:
        """Write the factor of each layer into its groups: a number, or one for each section of a group that is cut."""
        for number, group in enumerate(groups):
            layers = [
                layer for layer, group_index in zip(self.layer_of, self.group_of, strict=True) if group_index == number
            ]
            if layers:
                group["meta_scale"] = (
                    scales[layers[0]].clone() if len(layers) == 1 else torch.stack([scales[i] for i in layers])
                )

    def write_names(self, groups: Groups) -> None:
        """Write into each group the layer of each of its parameters, so that another map's factors are refused."""
        for group, names in zip(groups, self.layer_names, strict=True):
            if "meta_scale" in group:
                group["meta_layers"] = list(names)

    def check_learned(self, groups: Groups) -> None:
        """Refuse factors that were learned on other layers, which would be given to layers by their place.

        Raises:
            OptimizerError: The message names the layers of both sides.
        """
        for number, (group, own) in enumerate(zip(groups, self.layer_names, strict=True)):
            scale = group.get("meta_scale")
            count = scale.numel() if isinstance(scale, Tensor) else 1
            if scale is not None and (count != len(set(own)) or group.get("meta_layers", own) != own):
                _refuse(f"group {number}", group.get("meta_layers"), own)
        # Version 0.1 saved no names but those of its history.
        history = groups[0].get("meta_history", {}).get("layers", [])
        if any("meta_scale" in group and "meta_layers" not in group for group in groups) and set(history) - {
            *self.names
        }:
            _refuse("the history", history, self.names)

    def _place(self, section: int) -> int:
        return section - self.group_of.index(self.group_of[section])


def _group_labels(groups: Groups) -> list[list[str]]:
    return [[name] * len(group["params"]) for name, group in zip(group_layer_names(groups), groups, strict=True)]


def _parameter_labels(groups: Groups, layers: Layers) -> list[list[str]]:
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


def _refuse(place: str, saved: Sequence[str] | None, own: Sequence[str]) -> None:
    layers = "another number of layers" if saved is None else f"the layers {', '.join(dict.fromkeys(saved))}"
    raise OptimizerError(
        f"the optimizer's state holds factors that were learned on other layers: {place} was saved with {layers}, and "
        f"has here {', '.join(dict.fromkeys(own))}; map the network as it was mapped then, or start from a state "
        "without the keys meta_* in its param groups"
    )


def _key(optimizer: Optimizer) -> tuple[int, ...]:
    return tuple(number for group in optimizer.param_groups for number in (id(group), len(group["params"])))


def _device(groups: Groups) -> torch.device | None:
    """Return the device of the first parameter, or None where there is none."""
    return next((parameter.device for group in groups for parameter in group["params"]), None)
