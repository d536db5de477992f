"""What handlers ask of MONAI's engines."""

import inspect
from typing import Any

import torch
import torch.distributed as dist
from monai.data import MetaTensor
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from layertune import ModelError
from layertune.hosts.endless_data import ALONE, Share
from layertune.restoring import kept_random_state

__all__ = ["check_engine", "check_not_begun", "check_not_wrapped", "example_inputs", "network_of", "seed_and_share"]


def check_not_begun(engine: Any, handler: object) -> None:
    """Refuse an engine whose first iteration has passed.

    Raises:
        ModelError: naming the handler and the iteration.
    """
    if engine.state.iteration:
        raise ModelError(
            f"{type(handler).__name__} came to a {type(engine).__name__} that has begun (iteration "
            f"{engine.state.iteration}); attach it before run(), best in train_handlers=[...]"
        )


def network_of(engine: Any, handler: Any) -> nn.Module:
    """The handler's ``network`` if it has one, or else the engine's.

    Raises:
        ModelError: there is none.
    """
    network = handler.network if handler.network is not None else getattr(engine, "network", None)
    if not isinstance(network, nn.Module):
        raise ModelError(f"{type(engine).__name__} has no network; give {type(handler).__name__}(network=...)")
    return network


def seed_and_share() -> tuple[int, Share]:
    """One seed for all processes, and which of them this is."""
    seed = [torch.initial_seed() % 2**63]
    if not (dist.is_available() and dist.is_initialized()):
        return seed[0], ALONE
    dist.broadcast_object_list(seed)
    return seed[0], Share(dist.get_rank(), dist.get_world_size())


def check_not_wrapped(network: nn.Module) -> None:
    """Refuse to freeze what ``DistributedDataParallel`` waits for.

    Raises:
        ModelError: it has wrapped the network, and not with ``find_unused_parameters=True``.
    """
    if isinstance(network, DistributedDataParallel) and not network.find_unused_parameters:
        raise ModelError(
            "this policy freezes layers, and DistributedDataParallel waits for the gradients of all that it has "
            "wrapped; freeze before the network is wrapped, or wrap it with find_unused_parameters=True"
        )


def check_engine(engine: Any) -> None:
    """Refuse an engine that does not say how it makes a loss.

    Raises:
        ModelError: it lacks something that ``SupervisedTrainer`` has.
    """
    missing = [name for name in ("network", "inferer", "loss_function", "prepare_batch") if not hasattr(engine, name)]
    if missing:
        raise ModelError(
            f"{type(engine).__name__} has no {', '.join(missing)}, so the loss of a meta batch is not known; give "
            "MetaLRHandler(meta_loss=...), a function from the engine and a batch to the loss, or take streaming=True"
        )


def example_inputs(engine: Any, network: nn.Module) -> tuple[Any, ...]:
    """What the network's forward takes, by position, from the batch that the engine holds."""
    with kept_random_state():
        inputs, _, args, kwargs = _prepared(engine, engine.state.batch)
    inputs = _plain(inputs)
    if kwargs:
        # `map_layers` takes positions: the order of the names in `forward`.
        args = inspect.signature(network.forward).bind(inputs, *args, **kwargs).args[1:]
    return (inputs, *args)


def _prepared(engine: Any, batch: Any) -> tuple[Any, Any, tuple[Any, ...], dict[str, Any]]:
    made = engine.prepare_batch(batch, engine.state.device, engine.non_blocking, **engine.to_kwargs)
    return (*made, (), {}) if len(made) == 2 else made


def _plain(value: Any) -> Any:
    return value.as_tensor() if isinstance(value, MetaTensor) else value
