"""Prodigy with one estimate of the step size for each layer; imports the package ``prodigyopt``."""

import inspect
from collections.abc import Callable
from typing import Any

from prodigyopt import Prodigy

__all__ = ["SplitProdigy"]


class SplitProdigy(Prodigy):
    """Make the step of one ``prodigyopt.Prodigy`` for each layer.

    Prodigy keeps its estimate d in the param groups that a step runs on. So a step on the groups of one layer at a time
    gives each layer its own d, which is that of a Prodigy over this layer alone, bit for bit. The groups of a layer are
    those with the same ``"layer"``, for instance its decaying and its other parameters; they share one d. A group
    without this key is a layer of its own.

    See ``layertune.make_optimizer`` for what Prodigy needs.

    Example:
        >>> import torch
        >>> a, b = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
        >>> optimizer = SplitProdigy([{"params": [a], "layer": "a"}, {"params": [b], "layer": "b"}])
        >>> for _ in range(20):
        ...     a.grad, b.grad = 2 * (a.detach() - 0.5), 2 * (b.detach() + 9)
        ...     optimizer.step()
        >>> near, far = (group["d"] for group in optimizer.param_groups)
        >>> near < far
        True
    """

    param_groups: list[dict[str, Any]]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step, layer by layer.

        Args:
            closure: A function that computes the loss and its gradients again, as for any optimizer.
        """
        loss = None if closure is None else closure()
        # torch wraps `step` of each class for its hooks, which are to run once for the whole step.
        step_of_layer = inspect.unwrap(Prodigy.step)
        groups = self.param_groups
        try:
            for layer in self._layers():
                self.param_groups = layer
                step_of_layer(self)
        finally:
            self.param_groups = groups
        return loss

    def _layers(self) -> list[list[dict[str, Any]]]:
        layers: dict[Any, list[dict[str, Any]]] = {}
        for number, group in enumerate(self.param_groups):
            layers.setdefault(group.get("layer", number), []).append(group)
        return list(layers.values())
