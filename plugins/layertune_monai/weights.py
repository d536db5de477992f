"""Pre-trained weights for MONAI's networks, with a report of what was loaded."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from layertune.errors import ModelError
from layertune.layers.names import named_parameters
from layertune.weights.loading import Loaded, load_weights, read_weights

__all__ = ["check_frozen_layers", "load_pretrained", "renaming", "tuned"]

logger = logging.getLogger(__name__)

MLP = {"mlp.fc1.": "mlp.linear1.", "mlp.fc2.": "mlp.linear2."}
"""Parts of names in files of self-supervised pre-training, and what MONAI's Swin blocks call them."""
STAGE = ("layers1.", "layers2.", "layers3.", "layers4.")

Renaming = Callable[[str], str | None]


def load_pretrained(
    network: nn.Module,
    file: str | Path | None,
    *,
    prefix: str | None = None,
    allow_partial: bool = False,
    adapt: str | Collection[str] = (),
) -> Loaded | None:
    """Load a file of pre-trained weights into a network as far as it fits, and log the result.

    Files of the MONAI model zoo, of MedicalNet (``monai.networks.nets.resnet``), of Models Genesis (``GenesisUNet``)
    and of SwinUNETR's self-supervised pre-training are recognised by the names of their tensors. See
    ``layertune.load_weights`` for all other files. A head that the file lacks, or that has other classes there, keeps
    its initial weights, and the log says so.

    Args:
        network: The network that gets the weights. Its weights are replaced where the file holds them.
        file: The file. ``None`` leaves the network as it is.
        prefix: Beginning of the names in the file that are used, as ``"teacher"``, where it holds several networks.
        allow_partial: Whether to load what fits however little it is. Otherwise a file is refused if less than half of
            the network and less than half of the file match, since they belong to different networks most probably.
        adapt: How to adapt what does not fit, as ``"zero_channels"`` or ``["inflate", "classes"]``; see
            ``layertune.load_weights`` for all names.

    Returns:
        Which tensors were loaded, which were not, and why; ``None`` without a file.

    Raises:
        WeightsError: The file cannot be read; nothing or too little in it fits; or it holds NaN or several copies of
            the network.

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
    names = [name.removeprefix(f"{prefix}.") for name in weights]
    rename = renaming(names, network)
    loaded = load_weights(network, weights, rename=rename, prefix=prefix, allow_partial=allow_partial, adapt=adapt)
    # A partial load has to be seen at every level of logging: without a bundle's logging.conf, warnings alone appear.
    logger.log(logging.WARNING if loaded.missing else logging.INFO, "%s: %s", file, loaded.summary())
    last = list(named_parameters(network))[-1]
    if last in loaded.missing:
        logger.warning("The head keeps its fresh initialisation: %s, %s.", last, loaded.missing[last])
    return loaded


def check_frozen_layers(network: nn.Module, loaded: Loaded | None, groups: Sequence[Mapping[str, Any]]) -> nn.Module:
    """Refuse to freeze a layer that the pre-trained weights have not filled, and return the network.

    In a configuration this component comes after ``load_pretrained`` and ``param_groups``, so the network that it
    returns has its weights and its frozen layers.

    Args:
        network: The network that gets the weights.
        loaded: The result of ``load_pretrained``. ``None`` skips the check, because all layers are untrained then.
        groups: The groups of the optimizer from ``param_groups``, which froze all other parameters.

    Returns:
        The network.

    Raises:
        ModelError: A frozen parameter was not in the file, so it would keep its random initial value.

    Example:
        >>> net = nn.Sequential(nn.Conv3d(1, 4, 3), nn.Conv3d(4, 5, 1))
        >>> check_frozen_layers(net, None, [{"params": list(net.parameters())}]) is net
        True
    """
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    frozen = [name for name, parameter in named_parameters(network).items() if id(parameter) not in trained]
    random = [name for name in frozen if loaded is not None and name in loaded.missing]
    if random:
        raise ModelError(
            f"the weights give nothing for {', '.join(random[:3])}{' and others' if len(random) > 3 else ''}, and the "
            "method freezes them, so they would stay random; choose a method that trains them, such as --method "
            "layer_wise with a lower --first, or --method all_layers; with --method norm_only give --train_head True"
        )
    return network


tuned = check_frozen_layers  # bundles of version 0.1 name it so


def renaming(names: Iterable[str], network: nn.Module) -> Renaming | None:
    """Return how the names in a file become the network's names, for layouts that differ in more than a prefix.

    Args:
        names: The names of the tensors in the file.
        network: The network that the tensors are loaded into.

    Returns:
        A function from a name in the file to the network's name, or to ``None`` for a tensor that the network has no
        place for. ``None`` where no such function is needed.

    Example:
        >>> from monai.networks.nets import SwinUNETR
        >>> rename = renaming(["patch_embed.proj.weight"], SwinUNETR(1, 2, feature_size=12))
        >>> rename("layers1.0.blocks.0.mlp.fc1.weight"), rename("rotation_head.weight")
        ('swinViT.layers1.0.blocks.0.mlp.linear1.weight', None)
    """
    from monai.networks.nets import SwinUNETR

    if not isinstance(network, SwinUNETR):
        return None
    known = set(names)
    if "encoder.patch_embed.proj.weight" in known:
        return _rename_autoencoder
    return _rename_contrastive if "patch_embed.proj.weight" in known else None


def _rename_contrastive(name: str) -> str | None:
    """Rename for ``model_swinvit.pt`` (Tang et al. 2022), the encoder beside three heads of the pretext tasks."""
    if not name.startswith(("patch_embed.", *STAGE)):
        return None
    for in_file, in_network in MLP.items():
        name = name.replace(in_file, in_network)
    return f"swinViT.{name}"


def _rename_autoencoder(name: str) -> str | None:
    """Rename for ``ssl_pretrained_weights.pth`` (Valanarasu et al. 2023) by MONAI's own table of names."""
    from monai.networks.nets.swin_unetr import filter_swinunetr

    rename: Any = filter_swinunetr
    renamed = rename(name, None)
    return str(renamed[0]) if renamed else None
