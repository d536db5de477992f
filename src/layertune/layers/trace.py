"""A trace of one forward on fake tensors: order of execution, resolution, and which operation feeds which."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from layertune.errors import ModelError
from layertune.layers.activations import Activation
from layertune.layers.layer import require_network
from layertune.layers.names import unwrap
from layertune.layers.nested import map_tensors, tensors_in
from layertune.layers.operations import Operation
from layertune.layers.recorder import Recorder
from layertune.restoring import kept_attributes, kept_random_state, unwritten_parameters

__all__ = ["Operation", "Trace", "trace"]


@dataclass(frozen=True)
class Trace:
    """The structure of a network, as one forward pass shows it.

    Attributes:
        operations: The convolutions and linear layers by name, in order of execution.
        norms: The normalisation modules with parameters that ran. Each is mapped to the operation whose output it alone
            reads, or to ``None`` if there is no such operation, as for pre-activation norms.
        misaligned: The norms whose gammas do not scale the kernels of that operation one by one, each with the reason.
        activations: The norms whose output reaches an activation or the next operation. Each is mapped to the
            activation, which is ``"linear"`` if there is none.
        owners: The parameters that ran. Each is mapped to the operation or module that used it first.
        position: The parameters that ran. Each is mapped to the number of operations that ran before its first use.
        residual: The modules whose own ``forward`` adds a shortcut.
        unused: The names of the parameters that did not run.
    """

    operations: dict[str, Operation]
    norms: dict[str, str | None]
    misaligned: dict[str, str]
    activations: dict[str, Activation]
    owners: dict[str, str]
    position: dict[str, int]
    residual: frozenset[str]
    unused: tuple[str, ...]


def trace(model: nn.Module, *example_inputs: Any, **example_kwargs: Any) -> Trace:
    """Run the network once on fake tensors and record what ran, in which order, at which resolution.

    Nothing is computed, and no memory is taken for activations. Weights, buffers, random state, train or evaluation
    mode, hooks and attributes of the model are afterwards as before, also when its forward fails.

    Args:
        model: The network; it may be wrapped by ``torch.compile`` or DDP. Trace a network before ``fully_shard``.
        *example_inputs: The arguments of its forward, as tensors in containers, dataclasses or mappings. A tensor has
            the shape (batch, channels, ...), may be ``torch.empty``, and may be on any device. A batch norm in train
            mode needs more than one value per channel, so use a batch of 2.
        **example_kwargs: The keyword arguments of its forward.

    Returns:
        The structure of the network.

    Raises:
        ModelError: The network refuses the input, branches on the values of its tensors, is sharded, writes into its
            own parameters, or has no convolution or linear layer; or an input or output cannot be followed.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
        >>> found = trace(net, torch.empty(2, 1, 8, 8))
        >>> list(found.operations), found.norms
        (['0', '3'], {'1': '0'})
    """
    require_network(model)
    net = unwrap(model)
    _refuse_unready(net)
    recorder = Recorder(net)
    try:
        # In inference mode convolutions and linear layers are one operator each, which the recorder does not see.
        with (
            torch.inference_mode(False),
            kept_random_state(),
            kept_attributes(net, unregistered=True),
            unwritten_parameters(net),
            _runs_openly(net),
        ):
            outputs = _fake_forward(net, recorder, example_inputs, example_kwargs)
            recorder.finish(list(tensors_in(outputs)))
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ModelError(
            f"the forward of {type(net).__name__} branches on the values of its tensors ({error.func}), and a trace "
            "has only shapes; give map_layers a matcher, or a network without that step"
        ) from error
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(_refusal(net, error, (example_inputs, example_kwargs))) from error
    if not recorder.operations:
        raise ModelError(
            f"the forward of {type(net).__name__} ran no convolution and no linear layer with parameters: there is "
            "nothing to map"
        )
    return Trace(
        operations=recorder.operations,
        norms=recorder.norms(),
        misaligned=recorder.axes.misaligned,
        activations=recorder.trail.found,
        owners=recorder.owners,
        position=recorder.position,
        residual=recorder.residual(),
        unused=recorder.unused(),
    )


def _refuse_unready(net: nn.Module) -> None:
    if any(is_lazy(parameter) for parameter in net.parameters()):
        raise ModelError(
            f"{type(net).__name__} has uninitialized lazy parameters; run it once on a real input before mapping it"
        )
    if any(hasattr(parameter, "device_mesh") for parameter in net.parameters()):
        raise ModelError(
            f"{type(net).__name__} is sharded already, and a shard cannot be traced; call map_layers before "
            "fully_shard and use the map afterwards (names do not change)"
        )


def _refusal(net: nn.Module, error: Exception, arguments: Any) -> str:
    shapes = [tuple(leaf.shape) for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    hint = " (in train mode a batch norm needs a batch of 2)" if "more than 1 value" in str(error) else ""
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(net).__name__} refused the example input of shapes {shapes}{hint}: {reason[0]}"


def _fake_forward(net: nn.Module, recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    devices = [parameter.device for parameter in net.parameters()]

    def fake(tensor: Tensor) -> Tensor:
        copy = fake_mode.from_tensor(tensor.data)  # unlike `detach`, it shares no version with the tensor
        return copy.clone() if copy.is_inference() else copy  # what an inference tensor goes through is not recorded

    def fake_input(tensor: Tensor) -> Tensor:
        return fake(tensor).to(devices[0]) if devices else fake(tensor)

    with fake_mode, torch.no_grad():
        weights = {name: fake(tensor) for name, tensor in net.named_parameters()}
        buffers = {name: fake(tensor) for name, tensor in net.named_buffers()}
        args, kwargs = map_tensors((args, kwargs), fake_input)
        recorder.watch(weights, list(tensors_in((args, kwargs))))
        with recorder, recorder.frames():
            return functional_call(net, {**weights, **buffers}, args, kwargs)


@contextmanager
def _runs_openly(net: nn.Module) -> Iterator[None]:
    """Turn off fused and compiled forwards, which hide their layers, and norms that wait for other ranks.

    The norms' mode is restored with the modules' other attributes.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    for module in net.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.training = False
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.compiler.set_stance("force_eager"), warnings.catch_warnings(), _quiet(fake_tensor):
            # The recorder's hooks are global, fire twice for a compiled module, and count on it.
            warnings.filterwarnings("ignore", message="Using `torch.compile")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def _quiet(module: ModuleType) -> Iterator[None]:
    """Disable the log of a module. torch writes a refused shape there as a traceback, beside our own error."""
    log = logging.getLogger(module.__name__)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
