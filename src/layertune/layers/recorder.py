"""A recorder that follows the tensors of one forward: the operations behind each, and the one that made it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from layertune.layers.activations import ActivationTrail
from layertune.layers.kernel_axes import KernelAxes
from layertune.layers.names import plain_name
from layertune.layers.norm_layers import gamma_name, has_parameters
from layertune.layers.operations import (
    CONVOLUTIONS,
    LINEAR,
    OPERATIONS,
    PRODUCTS,
    RANDOM,
    SHAPE_ONLY,
    TRANSPARENT,
    Operation,
)

__all__ = ["Recorder"]


def _holder(parameter: str) -> str:
    """Return the path of the module that holds a parameter; of a parametrized weight, the parametrized module."""
    path, parametrized, _ = f".{parameter}".partition(".parametrizations.")
    return (path if parametrized else path.rpartition(".")[0]).removeprefix(".")


class Recorder(TorchDispatchMode):
    """See every operator of a forward and collect the contents of a ``Trace``.

    Attributes:
        operations: The convolutions and linear layers by name, in order of execution.
        owners: The parameters that ran, each with the operation or module that used it first.
        position: The parameters that ran, each with the number of operations that ran before its first use.
        trail: The activations that follow the norms.
        axes: The comparison of the axis that a norm's gammas scale with the axis of the kernels.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types there
        self.operations: dict[str, Operation] = {}
        self.owners: dict[str, str] = {}
        self.position: dict[str, int] = {}
        self.trail = ActivationTrail()
        self.axes = KernelAxes()
        self._modules = {plain_name(name): module for name, module in net.named_modules()}
        self._paths = {id(module): plain_name(name) for name, module in net.named_modules()}
        self._running: list[tuple[str, int]] = []  # modules, and how many non-linear operators had run before each
        self._nonlinear = 0
        self._batch = 1
        self._weights: dict[str, Tensor] = {}
        self._made_of: dict[int, frozenset[str]] = {}  # tensors that depend on the input: the operations behind them
        self._noise: set[int] = set()  # tensors that are made of random numbers alone
        self._producer: dict[int, str] = {}  # tensors that are one operation's output, untouched
        self._weight_names: dict[int, frozenset[str]] = {}  # tensors made of parameters alone
        self._readers: dict[str, set[str]] = {}  # who reads an operation's untouched output
        self._normalised: dict[str, set[str | None]] = {}  # what each norm normalises
        self._sums: dict[str, set[int]] = {}  # modules that add a shortcut, and the sizes of the sums
        self._alive: list[Tensor] = []  # an id may be used again once its tensor is gone

    def watch(self, weights: dict[str, Tensor], inputs: Sequence[Any]) -> None:
        """Name the tensors from which the forward starts: its parameters and its inputs."""
        self._weights = {plain_name(name): tensor for name, tensor in weights.items()}
        self._weight_names = {id(tensor): frozenset([name]) for name, tensor in self._weights.items()}
        tensors = [leaf for leaf in inputs if isinstance(leaf, Tensor)]
        if tensors and tensors[0].ndim:
            self._batch = max(1, tensors[0].shape[0])
        self._made_of = {id(tensor): frozenset() for tensor in tensors}
        self._alive += tensors

    @contextmanager
    def frames(self) -> Iterator[None]:
        """Keep the list of running modules, by global hooks that are removed at the end of the block."""

        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            if id(module) in self._paths:
                self._running.append((self._paths[id(module)], self._nonlinear))
                if has_parameters(module) and args:
                    self._normalise(self._paths[id(module)], self._producer.get(id(args[0])))
                    self.axes.enter_norm(self._paths[id(module)], module, args[0])

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            if id(module) in self._paths:
                self.axes.leave_norm(self._running.pop()[0])

        handles = register_module_forward_pre_hook(enter), register_module_forward_hook(leave)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.split("::")[1].rstrip("_")
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self._alive += outputs
        active = [tensor for tensor in inputs if id(tensor) in self._made_of]
        weights = frozenset[str]().union(*(self._weight_names.get(id(tensor), frozenset()) for tensor in inputs))
        noise = name in RANDOM or any(id(tensor) in self._noise for tensor in inputs)
        if active or self._takes_input_from_elsewhere(name, inputs, weights, noise=noise):
            if outputs and name not in SHAPE_ONLY:
                self._follow(name, args, inputs, outputs, active, weights)
                self._write_through(func, outputs)
        else:
            self._weight_names.update({id(tensor): weights for tensor in outputs if weights})
            self._noise.update(id(tensor) for tensor in outputs if noise)
        return result

    def norms(self) -> dict[str, str | None]:
        """Return the norms with parameters that ran, each with the operation that it alone reads, or ``None``."""
        pairs: dict[str, str | None] = {}
        for norm, normalised in self._normalised.items():
            source = next(iter(normalised)) if len(normalised) == 1 else None
            pairs[norm] = source if source is not None and self._readers[source] == {norm} else None
        return pairs

    def residual(self) -> frozenset[str]:
        """Return the modules whose own forward adds a shortcut.

        All its sums have one size. A decoder that adds its skips has sums of several sizes and is none.
        """
        return frozenset(name for name, sizes in self._sums.items() if name and len(sizes) == 1)

    def unused(self) -> tuple[str, ...]:
        """Return the names of the parameters that did not run."""
        return tuple(name for name in self._weights if name not in self.owners)

    def finish(self, outputs: Sequence[Any]) -> None:
        """Note the operations that reach the model's output, and those that feed only gates."""
        for leaf in outputs:
            for source in self._made_of.get(id(leaf), ()):
                self.operations[source].reaches_output = True
            if id(leaf) in self._producer:
                self._readers.setdefault(self._producer[id(leaf)], set()).add("output")
        for operation in reversed(self.operations.values()):
            to_gates = operation.feeds and all(self.operations[name].is_gate for name in operation.feeds)
            operation.is_gate = not operation.reaches_output and bool(operation.is_gate or to_gates)

    def _follow(
        self,
        name: str,
        args: Any,
        inputs: list[Tensor],
        outputs: list[Tensor],
        active: list[Tensor],
        weights: frozenset[str],
    ) -> None:
        made_of = frozenset[str]().union(*(self._made_of[id(tensor)] for tensor in active))
        producer = self._producer.get(id(active[0])) if active else None
        user = self._user(weights, inputs) if weights else None
        runs = user is not None and name in OPERATIONS
        self.trail.follow(name, args, active, outputs, norm=self._running_norm(), ends=runs, weights=weights)
        self._nonlinear += name not in LINEAR
        if active:
            self.axes.follow(name, args, active[0], outputs)
        if user is not None and runs:
            self._read(active, user)
            self._run_operation(user, name, args, made_of, outputs[0])
            made_of, producer = frozenset([user]), user
        elif not self._is_transparent(name, active, inputs, weights):
            norm = self._running_norm()
            if norm is None and user is not None and "norm" in name:
                norm = user
                self._normalise(norm, producer)
            if norm is not None and active:
                self._scale(norm, name, args, active[0], inputs)
            self._read(active, norm or "other")
            producer = None
            if name in {"add", "mul"} and len(active) > 1:
                self._combine(name, active)
        for tensor in outputs:
            self._made_of[id(tensor)] = made_of
            self._producer.pop(id(tensor), None)
            if producer is not None:
                self._producer[id(tensor)] = producer

    def _scale(self, norm: str, name: str, args: Any, values: Tensor, inputs: list[Tensor]) -> None:
        """Compare axes where an operator reads the gammas of a norm."""
        gamma = f"{norm}.{gamma_name(self._modules[norm])}".removeprefix(".")
        for tensor in inputs:
            if gamma in self._weight_names.get(id(tensor), ()):
                self.axes.scale(norm, name, args, values, tensor)

    def _running_norm(self) -> str | None:
        path = self._running[-1][0] if self._running else None
        return path if path is not None and has_parameters(self._modules[path]) else None

    def _normalise(self, norm: str, source: str | None) -> None:
        self._normalised.setdefault(norm, set()).add(source)

    def _read(self, active: list[Tensor], reader: str) -> None:
        for tensor in active:
            if id(tensor) in self._producer:
                self._readers.setdefault(self._producer[id(tensor)], set()).add(reader)

    def _combine(self, name: str, active: list[Tensor]) -> None:
        """Note a shortcut if both tensors have one shape, or a gate if the smaller has another origin."""
        small, large = sorted(active[:2], key=Tensor.numel)
        if small.numel() < large.numel():
            origin = self._made_of[id(small)]
            for source in origin if not origin & self._made_of[id(large)] else ():
                self.operations[source].is_gate = True
        elif name == "add" and self._running and self._running[-1][1] < self._nonlinear:
            self._sums.setdefault(self._running[-1][0], set()).add(small.numel())

    def _write_through(self, func: Any, outputs: list[Tensor]) -> None:
        """Note that the whole of a tensor contains what is written into a part of it (``out[:, 0] = ...``)."""
        base = outputs[0]._base if func._schema.is_mutable else None
        if base is not None:
            self._made_of[id(base)] = self._made_of.get(id(base), frozenset()) | self._made_of[id(outputs[0])]
            self._producer.pop(id(base), None)
            self._alive.append(base)

    def _is_transparent(self, name: str, active: list[Tensor], inputs: list[Tensor], weights: frozenset[str]) -> bool:
        # A factor that depends on neither the input nor the weights is a dropout mask.
        masked = name in {"mul", "div"} and len(active) == 1 and not weights and len(inputs) > 1
        bias = name == "add" and len(active) == 1 and bool(weights) and next(iter(weights)).endswith("bias")
        return name in TRANSPARENT or masked or bias

    def _takes_input_from_elsewhere(
        self, name: str, inputs: list[Tensor], weights: frozenset[str], *, noise: bool
    ) -> bool:
        """Whether a module applies its own weight to noise, or to parameters of others (queries, tokens)."""
        own = self._own(weights)
        rest = [self._weight_names.get(id(tensor), frozenset()) for tensor in inputs]
        return name in OPERATIONS and bool(own) and (noise or any(names and not names & own for names in rest))

    def _own(self, weights: frozenset[str]) -> frozenset[str]:
        """Return the parameters that the innermost running module holds itself.

        A functional call has put the fake tensors in their place.
        """
        if not self._running or not weights:
            return frozenset()
        held = {id(parameter) for parameter in self._modules[self._running[-1][0]]._parameters.values()}
        return frozenset(name for name in weights if id(self._weights[name]) in held)

    def _user(self, weights: frozenset[str], inputs: list[Tensor]) -> str:
        """Return the path that uses these weights: the innermost running module if it holds one, else their holder."""
        largest = max(
            (tensor for tensor in inputs if id(tensor) in self._weight_names),
            key=lambda tensor: (tensor.ndim, tensor.numel()),
        )
        main = sorted(self._weight_names[id(largest)], key=list(self._weights).index)
        # The root has no path, so a weight of the root is named by itself.
        user = (self._running[-1][0] if self._own(weights) else _holder(main[0])) or main[0]
        for weight in weights:
            self.owners.setdefault(weight, user if weight in main else _holder(weight))
            self.position.setdefault(weight, len(self.operations))
        return user

    def _run_operation(self, name: str, operator: str, args: Any, made_of: frozenset[str], output: Tensor) -> None:
        for source in made_of - {name}:
            if name not in self.operations[source].feeds:
                self.operations[source].feeds.append(name)
        if operator in CONVOLUTIONS:
            kind, axis = "conv_transpose" if args[6] else "conv", 1
        else:
            # In `weight @ x` the kernels are the rows of the product, in `x @ weight` its columns.
            on_the_left = operator in PRODUCTS and id(args[-1]) in self._made_of
            kind, axis = "linear", -2 if on_the_left else -1
        self.axes.begin(output, axis)
        if name in self.operations:
            return
        channels = output.shape[axis]
        self.operations[name] = Operation(name, kind, channels, output.numel() / max(1, channels * self._batch))
