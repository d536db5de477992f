"""Pre-trained weights of medical images into MONAI's networks, with a report of what matched."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from layertune.errors import ModelError
from layertune.layers.names import named_parameters
from layertune.weights.loading import Loaded, load_weights, read_weights

__all__ = ["load_pretrained", "renaming", "tuned"]

logger = logging.getLogger(__name__)

MLP = {"mlp.fc1.": "mlp.linear1.", "mlp.fc2.": "mlp.linear2."}
"""How MONAI's Swin blocks name what self-supervised pre-training has saved."""
STAGE = ("layers1.", "layers2.", "layers3.", "layers4.")

Renaming = Callable[[str], str | None]


def load_pretrained(network: nn.Module, file: str | Path | None) -> Loaded | None:
    """Load a file of pre-trained weights into a network as far as it fits, and log what did.

    Files of the MONAI model zoo, of MedicalNet (``monai.networks.nets.resnet``), of Models Genesis (``GenesisUNet``)
    and of SwinUNETR's self-supervised pre-training are told by their names of tensors; see ``layertune.load_weights``
    for all others. A head for other classes, or none in the file, stays as it was initialised, and the log says so.

    Args:
        network: its weights are replaced where the file has them.
        file: ``None`` leaves the network as it is.

    Returns:
        What matched, what did not, and why; ``None`` without a file.

    Raises:
        WeightsError: the file cannot be read, or nothing of it fits.

    Example:
        >>> import tempfile, torch
        >>> file = Path(tempfile.mkdtemp(), "model.pt")
        >>> torch.save(nn.Sequential(nn.Conv3d(1, 4, 3), nn.Conv3d(4, 2, 1)).state_dict(), file)
        >>> print(load_pretrained(nn.Sequential(nn.Conv3d(1, 4, 3), nn.Conv3d(4, 5, 1)), file).summary())
        2 of 4 tensors loaded; left as they were: 1.weight (shape (2, 4, 1, 1, 1) against (5, 4, 1, 1, 1)), ...
    """
    if file is None:
        return None
    weights = read_weights(file)
    loaded = load_weights(network, weights, rename=renaming(weights, network))
    # A partial load is told whatever the log is set to; `run` without a bundle's logging.conf shows warnings alone.
    logger.log(logging.WARNING if loaded.missing else logging.INFO, "%s: %s", file, loaded.summary())
    last = list(named_parameters(network))[-1]
    if last in loaded.missing:
        logger.warning("The head keeps its fresh initialisation: %s, %s.", last, loaded.missing[last])
    return loaded


def tuned(network: nn.Module, loaded: Loaded | None, groups: Sequence[Mapping[str, Any]]) -> nn.Module:
    """The network, once its weights are loaded and a scheme has frozen what it freezes; checks that both go together.

    Args:
        network: whose layers were frozen.
        loaded: from ``load_pretrained``.
        groups: of the optimizer, from ``param_groups``, which froze the layers.

    Raises:
        ModelError: a layer that stayed fresh is frozen, so that it would keep its random weights.

    Example:
        >>> net = nn.Sequential(nn.Conv3d(1, 4, 3), nn.Conv3d(4, 5, 1))
        >>> tuned(net, None, [{"params": list(net.parameters())}]) is net
        True
    """
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    names = {name: parameter for name, parameter in named_parameters(network).items() if id(parameter) not in trained}
    fresh = [name for name in names if loaded is not None and name in loaded.missing]
    if fresh:
        raise ModelError(
            f"the weights give nothing for {', '.join(fresh[:3])}{' and others' if len(fresh) > 3 else ''}, and the "
            "method freezes them, so they would stay random; choose a method that tunes them, as --method layer_wise "
            "--first with a lower number, or all; --method norm_only takes --train_head True for a head"
        )
    return network


def renaming(names: Iterable[str], network: nn.Module) -> Renaming | None:
    """How a file's names become the network's, for layouts that no rule of prefixes tells.

    Args:
        names: of the tensors in the file.
        network: what is to take them.

    Returns:
        A function from a name to the network's, or to ``None`` for one that it has no place for; ``None`` where names
        need no such change.

    Example:
        >>> from monai.networks.nets import SwinUNETR
        >>> to_own = renaming(["patch_embed.proj.weight"], SwinUNETR(1, 2, feature_size=12))
        >>> to_own("layers1.0.blocks.0.mlp.fc1.weight"), to_own("rotation_head.weight")
        ('swinViT.layers1.0.blocks.0.mlp.linear1.weight', None)
    """
    from monai.networks.nets import SwinUNETR

    if not isinstance(network, SwinUNETR):
        return None
    known = set(names)
    if "encoder.patch_embed.proj.weight" in known:
        return _autoencoder
    return _contrastive if "patch_embed.proj.weight" in known else None


def _contrastive(name: str) -> str | None:
    """Tang et al. 2022, ``model_swinvit.pt``: the encoder beside three heads of the pretext tasks."""
    if not name.startswith(("patch_embed.", *STAGE)):
        return None
    for theirs, own in MLP.items():
        name = name.replace(theirs, own)
    return f"swinViT.{name}"


def _autoencoder(name: str) -> str | None:
    """Valanarasu et al. 2023, ``ssl_pretrained_weights.pth``: MONAI's own table of names."""
    from monai.networks.nets.swin_unetr import filter_swinunetr

    to_own: Any = filter_swinunetr
    renamed = to_own(name, None)
    return str(renamed[0]) if renamed else None
