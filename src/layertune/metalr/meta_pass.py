"""The meta pass: a second forward and backward pass that changes nothing but the gradients."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from layertune.metalr.attached import count_meta_pass
from layertune.restoring import cuda_devices_of, kept_random_state, seed_generators

__all__ = ["frozen_statistics", "kept_gradients", "meta_pass"]


@contextmanager
def meta_pass(model: nn.Module) -> Iterator[None]:
    """Run the forward and backward pass of a meta batch inside, and restore random state and running statistics.

    A run with meta passes then sees the same dropout masks, augmentations (drawn from the global generators of torch,
    numpy and Python) and running statistics as one without. Inside, random numbers come from a stream of their own. It
    depends on the random state on entry, and on how many meta passes the ``MetaLR`` of this model has had before. That
    number is saved with the optimizer, so each meta pass draws new numbers and a resumed run draws the same ones.

    Args:
        model: The network that runs inside; under DDP the wrapper.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
        >>> state = torch.get_rng_state()
        >>> with meta_pass(net):
        ...     net(torch.ones(1, 3)).sum().backward()
        >>> torch.equal(state, torch.get_rng_state())
        True
    """
    parameters = list(model.parameters())
    devices = cuda_devices_of(parameters)
    passes = count_meta_pass(parameters)
    with kept_random_state(devices), frozen_statistics(model):
        # Where masks are drawn on a device, only that generator moves from step to step; its offset is at hand there.
        offsets = [torch.cuda.default_generators[index].get_offset() for index in devices]
        seed_generators(hash((int(torch.randint(2**32, ()).item()), *offsets, *passes)) % 2**32, devices)
        yield


@contextmanager
def kept_gradients(module: nn.Module, *, shared: bool) -> Iterator[None]:
    """Remove the gradients at the start of the block and put them back at its end.

    Args:
        module: The module whose parameters' gradients are saved and restored.
        shared: Whether the next backward pass writes into the memory of these gradients, as DDP's bucket views do. Then
            they are copied.
    """
    before = [(parameter, parameter.grad) for parameter in module.parameters()]
    if shared:
        before = [(parameter, None if grad is None else grad.clone()) for parameter, grad in before]
    for parameter, _ in before:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, grad in before:
            parameter.grad = grad


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Restore the buffers that forward passes in train mode change, above all running statistics and batch counts.

    Inside, norms in train mode use batch statistics as usual. Their changes to the running statistics are undone bit
    for bit, also on an exception, and so are the power iterations of spectral norms and the buffers of the hosts' own
    layers. Modules in eval mode are not touched.

    Args:
        model: Any network, also wrapped.

    Example:
        >>> net = nn.BatchNorm1d(2)
        >>> with frozen_statistics(net):
        ...     _ = net(torch.randn(8, 2))
        >>> net.num_batches_tracked.item(), net.running_mean.tolist()
        (0, [0.0, 0.0])
    """
    tracked = [
        (module, name, buffer)
        for module in model.modules()
        if module.training
        for name, buffer in module.named_buffers(recurse=False)
    ]
    # `data` has no version counter, so a later backward pass does not mistake a restored buffer for a changed one.
    contents = [_own_memory(buffer.data) for _, _, buffer in tracked]
    before = [content.clone() for content in contents]
    try:
        yield
    finally:
        if tracked:
            torch._foreach_copy_(contents, before)
        for module, name, buffer in tracked:
            module._buffers[name] = buffer


def _own_memory(content: Tensor) -> Tensor:
    """Return a view with each place in memory once; torch refuses to write to an expanded tensor."""
    if content.layout is torch.strided:
        for dimension, stride in enumerate(content.stride()):
            if stride == 0 and content.shape[dimension] > 1:
                content = content.narrow(dimension, 0, 1)
    return content
