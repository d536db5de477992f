"""One forward on fake tensors: execution order, resolution, who feeds whom."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from layertune.errors import ModelError

__all__ = ["Operation", "Trace", "trace", "unwrap"]

NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
CONVOLUTIONS = {"convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution"}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "embedding"}
# These hand a tensor on with its channels intact, so what follows still sees the convolution's own output.
TRANSPARENT = {
    "_reshape_alias",
    "_to_copy",
    "_unsafe_view",
    "alias",
    "clone",
    "contiguous",
    "detach",
    "expand",
    "native_dropout",
    "permute",
    "reshape",
    "squeeze",
    "transpose",
    "unsqueeze",
    "view",
}
# These take a tensor for its shape alone: nothing of its content reaches what they return.
SHAPE_ONLY = {"empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like"}


@dataclass
class Operation:
    """A convolution or a linear layer as it ran, at its first call.

    Attributes:
        name: path of the module that owns the weight, without wrappers' prefixes.
        kind: ``"conv"``, ``"conv_transpose"`` or ``"linear"``.
        channels: output channels (kernels) of the weight.
        positions: output positions per sample: voxels of a feature map, tokens of a sequence, 1 for a vector.
        feeds: operations that read its output with no other operation between, in order of execution.
        reaches_output: whether its output becomes a part of the model's output with no other operation between.
    """

    name: str
    kind: str
    channels: int
    positions: float
    feeds: list[str] = field(default_factory=list)
    reaches_output: bool = False


@dataclass(frozen=True)
class Trace:
    """What one forward pass shows of a network.

    Attributes:
        operations: convolutions and linear layers by name, in order of execution.
        norms: each normalisation module that ran with parameters, and the operation whose output it normalises
            (``None``: it normalises something else, as pre-activation norms do).
        owners: each parameter that ran, and the module that used it first.
        position: each parameter that ran, and how many operations had run before its first use.
        residual: modules whose own ``forward`` adds a shortcut.
        unused: parameters that did not run.
    """

    operations: dict[str, Operation]
    norms: dict[str, str | None]
    owners: dict[str, str]
    position: dict[str, int]
    residual: frozenset[str]
    unused: tuple[str, ...]


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside ``torch.compile``, DDP and DataParallel wrappers (any nesting)."""
    parallel = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while True:
        inner = model.module if isinstance(model, parallel) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def plain_name(name: str) -> str:
    """A module's or parameter's path without the segment that ``torch.compile`` puts into it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def trace(model: nn.Module, *example_inputs: Any, **example_kwargs: Any) -> Trace:
    """Run the network once on fake tensors and record what ran, in which order, at which resolution.

    Nothing is computed and nothing is kept: no activation memory, and weights, buffers, random state, train or eval
    mode, hooks and attributes of the model are as before, also when its forward fails.

    Args:
        model: any network; wrappers of ``torch.compile`` and DDP are looked through. Map a network before
            ``fully_shard``.
        *example_inputs: what its forward takes; a tensor is (batch, channels, ...) and may be ``torch.empty``. Under
            a network in train mode, a batch of 2 keeps batch norms content at one voxel per channel.
        **example_kwargs: keyword arguments of its forward.

    Returns:
        The order of operations, their resolution, and which convolution each norm follows.

    Raises:
        ModelError: the network refuses the input, is sharded, or has no convolution or linear layer.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
        >>> found = trace(net, torch.empty(2, 1, 8, 8))
        >>> list(found.operations), found.norms
        (['0', '3'], {'1': '0'})
    """
    net = unwrap(model)
    _refuse_sharded(net)
    recorder = _Recorder(net)
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    with ExitStack() as stack:
        stack.enter_context(_left_as_it_was(net))
        try:
            outputs = _fake_forward(net, fake_mode, recorder, example_inputs, example_kwargs)
        except Exception as error:
            shapes = [tuple(leaf.shape) for leaf in tree_leaves(example_inputs) if isinstance(leaf, Tensor)]
            hint = " (in train mode a batch norm needs a batch of 2)" if "more than 1 value" in str(error) else ""
            raise ModelError(
                f"{type(net).__name__} refused the example input of shapes {shapes}{hint}: "
                f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
            ) from error
    return recorder.finish(outputs)


def _refuse_sharded(net: nn.Module) -> None:
    if any(hasattr(parameter, "device_mesh") for parameter in net.parameters()):
        raise ModelError(
            f"{type(net).__name__} is sharded already, and a shard cannot be traced; call map_layers before "
            "fully_shard and use the map afterwards (names do not change)"
        )


def _fake_forward(
    net: nn.Module,
    fake_mode: FakeTensorMode,
    recorder: "_Recorder",
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    def fake(tensor: Tensor) -> Tensor:
        return fake_mode.from_tensor(tensor.detach())

    weights = {name: fake(tensor) for name, tensor in net.named_parameters()}
    buffers = {name: fake(tensor) for name, tensor in net.named_buffers()}
    recorder.watch_parameters(weights)
    with fake_mode, recorder, recorder.frames(), torch.no_grad():
        args, kwargs = tree_map_only(Tensor, fake, (args, kwargs))
        recorder.watch_inputs(tree_leaves((args, kwargs)))
        return functional_call(net, {**weights, **buffers}, args, kwargs)


@contextmanager
def _left_as_it_was(net: nn.Module) -> Iterator[None]:
    """Put back random state and whatever a forward writes into its modules (caches, counters)."""
    attributes = [(module, dict(module.__dict__)) for module in net.modules()]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    fastpath = torch.backends.mha.get_fastpath_enabled()
    synced = [m for m in net.modules() if isinstance(m, nn.SyncBatchNorm) and m.training]
    try:
        # The fused transformer kernel hides its linear layers; a synchronised norm would wait for other ranks.
        torch.backends.mha.set_fastpath_enabled(False)
        for module in synced:
            module.training = False
        with torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for module, before in attributes:
            module.__dict__.clear()
            module.__dict__.update(before)


class _Recorder(TorchDispatchMode):
    """Follows tensors through one forward: what each was made of, and by which operation."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.modules = {plain_name(name): module for name, module in net.named_modules()}
        self.path = {id(module): name for name, module in self.modules.items()}
        self.stack: list[str] = []
        self.operations: dict[str, Operation] = {}
        self.norms: dict[str, str | None] = {}
        self.owners: dict[str, str] = {}
        self.position: dict[str, int] = {}
        self.residual: set[str] = set()
        self.names: list[str] = []
        self.batch = 1
        self.made_of: dict[int, frozenset[str]] = {}  # tensors that depend on the input: the operations behind them
        self.producer: dict[int, str] = {}  # tensors that are one operation's output, untouched
        self.weights: dict[int, frozenset[str]] = {}  # tensors made of parameters alone
        self.alive: list[Tensor] = []  # an id is only good while its tensor lives

    def watch_parameters(self, weights: dict[str, Tensor]) -> None:
        for name, tensor in weights.items():
            self.names.append(plain_name(name))
            self.weights[id(tensor)] = frozenset([plain_name(name)])
            self.alive.append(tensor)

    def watch_inputs(self, leaves: list[Any]) -> None:
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if tensors and tensors[0].ndim:
            self.batch = max(1, tensors[0].shape[0])
        for tensor in tensors:
            self.made_of[id(tensor)] = frozenset()
            self.alive.append(tensor)

    @contextmanager
    def frames(self) -> Iterator[None]:
        """Know at each moment which modules are running, by hooks that are global and leave with the context."""

        def enter(module: nn.Module, _: Any) -> None:
            if id(module) in self.path:
                self.stack.append(self.path[id(module)])

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            if id(module) in self.path:
                self.stack.pop()

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
        self.alive += outputs
        active = [tensor for tensor in inputs if id(tensor) in self.made_of]
        weights = frozenset[str]().union(*(self.weights.get(id(tensor), frozenset()) for tensor in inputs))
        if not active:
            self.weights.update({id(tensor): weights for tensor in outputs if weights})
        elif name not in SHAPE_ONLY:
            self._follow(name, args, active, weights, inputs, outputs)
        return result

    def _follow(
        self,
        name: str,
        args: Any,
        active: list[Tensor],
        weights: frozenset[str],
        inputs: list[Tensor],
        outputs: list[Tensor],
    ) -> None:
        made_of = frozenset[str]().union(*(self.made_of[id(tensor)] for tensor in active))
        producer = self.producer.get(id(active[0]))
        owner = self._owner(weights, inputs) if weights else None
        if owner is not None and (name in CONVOLUTIONS or name in PRODUCTS):
            kind = "linear" if name in PRODUCTS else "conv_transpose" if args[6] else "conv"
            self._run_operation(owner, kind, made_of, outputs[0])
            made_of, producer = frozenset([owner]), owner
        elif owner is not None and ("norm" in name or isinstance(self.modules[owner], NORMS)):
            self.norms.setdefault(owner, producer)
            producer = None
        elif not self._is_transparent(name, active, inputs, weights):
            producer = None
            if name == "add" and len(active) > 1 and active[0].shape == active[1].shape and self.stack:
                self.residual.add(self.stack[-1])
        for tensor in outputs:
            self.made_of[id(tensor)] = made_of
            self.producer.pop(id(tensor), None)
            if producer is not None:
                self.producer[id(tensor)] = producer

    def _is_transparent(self, name: str, active: list[Tensor], inputs: list[Tensor], weights: frozenset[str]) -> bool:
        # A product with something that depends on neither input nor weights is a dropout mask.
        masked = name in {"mul", "div"} and len(active) == 1 and not weights and len(inputs) > 1
        bias = name == "add" and len(active) == 1 and bool(weights) and next(iter(weights)).endswith("bias")
        return name in TRANSPARENT or masked or bias

    def _owner(self, weights: frozenset[str], inputs: list[Tensor]) -> str:
        """The module that uses these weights now: the innermost running one that holds one of them."""
        main = max(
            (tensor for tensor in inputs if id(tensor) in self.weights),
            key=lambda tensor: (tensor.ndim, tensor.numel()),
        )
        main_weights = sorted(self.weights[id(main)], key=self.names.index)
        owner = main_weights[0].rpartition(".")[0]
        held = {id(p) for p in self.modules[self.stack[-1]]._parameters.values()} if self.stack else set()
        if any(id(self._fake(weight)) in held for weight in main_weights):
            owner = self.stack[-1]
        for weight in sorted(weights, key=self.names.index):
            self.owners.setdefault(weight, owner if weight in main_weights else weight.rpartition(".")[0])
            self.position.setdefault(weight, len(self.operations))
        return owner

    def _fake(self, name: str) -> Tensor:
        return self.alive[self.names.index(name)]

    def _run_operation(self, owner: str, kind: str, made_of: frozenset[str], output: Tensor) -> None:
        for source in made_of - {owner}:
            if owner not in self.operations[source].feeds:
                self.operations[source].feeds.append(owner)
        if owner not in self.operations:
            channels = output.shape[-1] if kind == "linear" else output.shape[1]
            positions = output.numel() / max(1, channels * self.batch)
            self.operations[owner] = Operation(owner, kind, channels, positions)

    def finish(self, outputs: Any) -> Trace:
        if not self.operations:
            raise ModelError("the forward ran no convolution and no linear layer with parameters; nothing to map")
        for leaf in tree_leaves(outputs):
            for source in self.made_of.get(id(leaf), ()):
                self.operations[source].reaches_output = True
        return Trace(
            operations=self.operations,
            norms=self.norms,
            owners=self.owners,
            position=self.position,
            residual=frozenset(self.residual - {""}),
            unused=tuple(name for name in self.names if name not in self.owners),
        )
