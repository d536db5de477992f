"""What a MONAI user sees while an engine trains: the layers that train, and the learned rates as metrics."""

import logging
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import nn

from layertune import LayerMap

__all__ = ["log_layers", "log_once", "log_trained", "publish_lrs"]

logger = logging.getLogger("layertune_monai")


def log_layers(layers: LayerMap, scales: Sequence[float]) -> None:
    """Say which layers are tuned and which are frozen, each with its depth.

    Args:
        layers: of the network.
        scales: from a policy; 0 is frozen.
    """
    parts = [
        f"{word}: {', '.join(f'{layer.name} ({layer.depth})' for layer in chosen) or 'none'}"
        for word, chosen in (
            ("tuned", [layer for layer, scale in zip(layers, scales, strict=True) if scale]),
            ("frozen", [layer for layer, scale in zip(layers, scales, strict=True) if not scale]),
        )
    ]
    log_once(f"Layers with their depths by {layers.interpretation}; {'; '.join(parts)}")


def log_trained(network: nn.Module) -> None:
    """Say how many parameters train, and in which modules: for what freezes parts of layers."""
    trained = {name.rpartition(".")[0] for name, part in network.named_parameters() if part.requires_grad}
    number = sum(part.numel() for part in network.parameters() if part.requires_grad)
    total = sum(part.numel() for part in network.parameters())
    log_once(f"{number} of {total} parameters train, in {', '.join(sorted(trained))}; the others are frozen")


def log_once(line: str) -> None:
    """Say something once for all processes."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_rank()):
        logger.info(line)


def publish_lrs(engine: Any, lrs: dict[str, float]) -> None:
    """Put the rates where ``StatsHandler``, ``TensorBoardStatsHandler`` and ``MLFlowHandler`` look for metrics."""
    engine.state.metrics.update({f"lr/{layer}": rate for layer, rate in lrs.items()})
