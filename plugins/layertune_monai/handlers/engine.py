"""What handlers need from MONAI's engines: their events, network, batches and processes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from monai.data import MetaTensor
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from layertune import ModelError
from layertune.hosts.endless_data import ALONE, Share
from layertune.hosts.module_layers import positional_inputs
from layertune.restoring import kept_random_state

__all__ = [
    "attach_once",
    "check_engine",
    "check_not_wrapped",
    "example_inputs",
    "network_of",
    "plain_tensor",
    "prepared_batch",
    "seed_and_share",
]


def attach_once(engine: Any, handler: object, events: Mapping[Any, Callable[[Any], None]]) -> bool:
    """Register a handler's functions with an engine, unless they are registered already.

    Args:
        engine: The engine, before its first iteration.
        handler: The handler, for the error.
        events: The function for each event.

    Returns:
        Whether the functions are new to the engine.

    Raises:
        ModelError: The engine has begun.
    """
    if engine.state.iteration:
        raise ModelError(
            f"{type(handler).__name__} came to a {type(engine).__name__} that has begun (iteration "
            f"{engine.state.iteration}); attach it before run(), best in train_handlers=[...]"
        )
    new = {event: function for event, function in events.items() if not engine.has_event_handler(function, event)}
    for event, function in new.items():
        engine.add_event_handler(event, function)
    return bool(new)


def network_of(engine: Any, handler: Any) -> nn.Module:
    """Return the handler's ``network`` if it has one, or else the engine's.

    Raises:
        ModelError: Neither has a network.
    """
    network = handler.network if handler.network is not None else getattr(engine, "network", None)
    if not isinstance(network, nn.Module):
        raise ModelError(f"{type(engine).__name__} has no network; give {type(handler).__name__}(network=...)")
    return network


def check_not_wrapped(network: nn.Module) -> None:
    """Refuse to freeze layers of a network for which ``DistributedDataParallel`` waits.

    Raises:
        ModelError: The network is wrapped by DDP without ``find_unused_parameters=True``.
    """
    if isinstance(network, DistributedDataParallel) and not network.find_unused_parameters:
        raise ModelError(
            "part of the network is to be frozen, and DistributedDataParallel waits for the gradients of all "
            "parameters that it has wrapped; freeze before the network is wrapped, or wrap it with "
            "find_unused_parameters=True"
        )


def check_engine(engine: Any) -> None:
    """Refuse an engine that does not say how it computes a loss.

    Raises:
        ModelError: The engine lacks an attribute that ``SupervisedTrainer`` has.
    """
    missing = [name for name in ("network", "inferer", "loss_function", "prepare_batch") if not hasattr(engine, name)]
    if missing:
        raise ModelError(
            f"{type(engine).__name__} has no {', '.join(missing)}, so the loss of a meta batch is not known; give "
            "MetaLRHandler(meta_loss=...), a function from the engine and a batch to the loss, or take streaming=True"
        )


def prepared_batch(engine: Any, batch: Any) -> tuple[Any, Any, tuple[Any, ...], dict[str, Any]]:
    """Return inputs, targets and further arguments of the network, as the engine's ``prepare_batch`` makes them."""
    parts = engine.prepare_batch(batch, engine.state.device, engine.non_blocking, **engine.to_kwargs)
    return (*parts, (), {}) if len(parts) == 2 else parts


def plain_tensor(value: Any) -> Any:
    """Return the tensor without MONAI's metadata, and anything else as it is."""
    return value.as_tensor() if isinstance(value, MetaTensor) else value


def example_inputs(engine: Any, network: nn.Module) -> tuple[Any, ...]:
    """Return the arguments of the network's forward by position, from the batch that the engine holds."""
    with kept_random_state():
        inputs, _, args, kwargs = prepared_batch(engine, engine.state.batch)
    return positional_inputs(network, plain_tensor(inputs), *args, **kwargs)


def seed_and_share() -> tuple[int, Share]:
    """Return one seed for all processes, and which of them this is."""
    seed = [torch.initial_seed() % 2**63]
    if not (dist.is_available() and dist.is_initialized()):
        return seed[0], ALONE
    dist.broadcast_object_list(seed)
    return seed[0], Share(dist.get_rank(), dist.get_world_size())
