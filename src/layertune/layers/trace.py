"""One forward on fake tensors: execution order, resolution, who feeds whom."""

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
from layertune.layers.names import unwrap
from layertune.layers.nested import map_tensors, tensors_in
from layertune.layers.operations import Operation
from layertune.layers.recorder import Recorder
from layertune.restoring import kept_attributes, kept_random_state, unwritten_parameters

__all__ = ["Operation", "Trace", "trace"]


@dataclass(frozen=True)
class Trace:
    """What one forward pass shows of a network.

    Attributes:
        operations: convolutions and linear layers by name, in order of execution.
        norms: each normalisation module that ran with parameters, and the operation whose output it, and nothing
            else, reads (``None``: there is none, as for pre-activation norms).
        misaligned: norms whose gammas do not scale, one by one, the kernels of that operation, each with the reason.
        activations: each norm whose output an activation, or the next operation without one, reads first.
        owners: each parameter that ran, and the operation or module that used it first.
        position: each parameter that ran, and how many operations had run before its first use.
        residual: modules whose own ``forward`` adds a shortcut.
        unused: parameters that did not run.
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

    Nothing is computed and nothing is kept: no activation memory, and weights, buffers, random state, train or eval
    mode, hooks and attributes of the model are as before, also when its forward fails.

    Args:
        model: any network; wrappers of ``torch.compile`` and DDP are looked through. Map a network before
            ``fully_shard``.
        *example_inputs: what its forward takes; a tensor is (batch, channels, ...) and may be ``torch.empty``, on any
            device. Under a network in train mode, a batch of 2 keeps batch norms content at one voxel per channel.
        **example_kwargs: keyword arguments of its forward.

    Returns:
        The order of operations, their resolution, and which convolution each norm follows.

    Raises:
        ModelError: the network refuses the input, decides by the values of its tensors, is sharded, or has no
            convolution or linear layer.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
        >>> found = trace(net, torch.empty(2, 1, 8, 8))
        >>> list(found.operations), found.norms
        (['0', '3'], {'1': '0'})
    """
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
            f"the forward of {type(net).__name__} decides by the values of its tensors ({error.func}), and a trace "
            "has shapes only; give map_layers a matcher, or a network without that step"
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


def _refusal(net: nn.Module, error: Exception, given: Any) -> str:
    shapes = [tuple(leaf.shape) for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
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
    """No fused or compiled forward, which would hide its layers, and no norm that waits for other ranks.

    The norms' mode comes back with the modules' other attributes.
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
    """Without the module's log: torch writes a refused shape there as a traceback, and it is our error already."""
    log = logging.getLogger(module.__name__)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
