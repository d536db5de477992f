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
    """Log which layers are tuned and which are frozen, each with its depth.

    Args:
        layers: The layers of the network.
        scales: The scale of each layer, from a policy; 0 means frozen.
    """
    pairs = list(zip(layers, scales, strict=True))
    tuned, frozen = (
        [f"{layer.name} ({layer.depth})" for layer, scale in pairs if bool(scale) is on] for on in (True, False)
    )
    log_once(
        f"Layers with their depths by {layers.interpretation}; tuned: {', '.join(tuned) or 'none'}; "
        f"frozen: {', '.join(frozen) or 'none'}"
    )


def log_trained(network: nn.Module) -> None:
    """Log how many parameters train, and in which modules, where parts of layers are frozen."""
    trained = {name.rpartition(".")[0] for name, part in network.named_parameters() if part.requires_grad}
    number = sum(part.numel() for part in network.parameters() if part.requires_grad)
    total = sum(part.numel() for part in network.parameters())
    log_once(f"{number} of {total} parameters train, in {', '.join(sorted(trained))}; the others are frozen")


def log_once(line: str, level: int = logging.INFO) -> None:
    """Log a line, in the first of several processes only."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_rank()):
        logger.log(level, line)


def publish_lrs(engine: Any, lrs: dict[str, float]) -> None:
    """Put the rates where ``StatsHandler``, ``TensorBoardStatsHandler`` and ``MLFlowHandler`` look for metrics."""
    engine.state.metrics.update({f"lr/{layer}": rate for layer, rate in lrs.items()})
