"""Turn weights of any origin into a file for ``nnUNetv2_train -pretrained_weights``."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from layertune import Loaded, WeightsError, load_weights, read_weights
from layertune.files import write_file
from layertune_nnunet.tools.planned_network import planned_network

__all__ = ["HEADS", "ImportedWeights", "import_weights", "renaming"]

HEADS = ".seg_layers."
"""Part of the names of the segmentation layers, which nnU-Net never loads from a file."""


@dataclass(frozen=True)
class ImportedWeights:
    """Say which weights were imported and which are initial ones.

    Attributes:
        out: The file for ``-pretrained_weights``.
        loaded: The tensors that matched, and those that did not, with the reason.
        seed: Seed of the initial weights, which fill what did not match.
    """

    out: Path
    loaded: Loaded
    seed: int

    @property
    def fresh(self) -> dict[str, str]:
        """The tensors that hold initial weights, with the reason. nnU-Net does not load segmentation layers anyway."""
        return {name: why for name, why in self.loaded.missing.items() if HEADS not in name}

    def as_dict(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return {"out": str(self.out), "seed": self.seed, "fresh": self.fresh, **self.loaded.as_dict()}


def import_weights(
    weights: Path,
    out: Path,
    *,
    plans: Path,
    dataset_json: Path,
    configuration: str,
    seed: int = 0,
    rename: Callable[[str], str] | None = None,
    prefix: str | None = None,
    allow_partial: bool = False,
    adapt: Collection[str] = (),
) -> ImportedWeights:
    """Write the weights that fit a plan's network into a file of pre-trained weights for nnU-Net.

    nnU-Net requires all weights but those of the segmentation layers. Tensors that the file lacks, or has in another
    shape, get the network's own seeded initial weights. So an encoder without a decoder can be imported, too.

    Args:
        weights: A file that ``layertune.read_weights`` can read.
        out: The file to write. It is written whole or not at all.
        plans: Path of nnU-Net's plan.
        dataset_json: Path of the ``dataset.json`` that belongs to the plan.
        configuration: A configuration of the plan, as in ``"3d_fullres"``.
        seed: Seed of the initial weights.
        rename: Function from a name in the file to a name in the network. With it, no names are guessed.
        prefix: Beginning of the names in the file that are used, where it holds several copies of the network.
        allow_partial: Whether to import what fits however little it is, as ``layertune.load_weights`` does.
        adapt: How to adapt what does not fit, as in ``["kernel_size"]``; see ``layertune.load_weights`` for all names.

    Raises:
        WeightsError: The weights cannot be read; too little of them fits, or nothing but segmentation layers; or they
            hold NaN or several copies of the network. Nothing is written then.
        PlansError: There is no such plan or configuration.
    """
    tensors = read_weights(weights)
    network = planned_network(plans, dataset_json, configuration, seed=seed).network
    loaded = load_weights(network, tensors, rename=rename, prefix=prefix, allow_partial=allow_partial, adapt=adapt)
    if all(HEADS in name for name in loaded.matched):
        raise WeightsError(
            f"only segmentation layers fit the network of those in {weights}, and nnU-Net never loads them from a file"
        )
    _write({"network_weights": network.state_dict()}, out)
    return ImportedWeights(out, loaded, seed)


def renaming(pairs: Sequence[str]) -> Callable[[str], str] | None:
    """Read pairs ``OLD=NEW``, which replace the beginning of names.

    Args:
        pairs: The texts. For each name, the first pair that fits is used.

    Returns:
        The function that renames, or None without pairs.

    Raises:
        WeightsError: A text is not a pair.

    Example:
        >>> renamed = renaming(["down_tr=encoder.stages.", "out_tr=head"])
        >>> renamed("down_tr64.weight"), renamed("other")
        ('encoder.stages.64.weight', 'other')
    """
    beginnings = []
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not old or not equals:
            raise WeightsError(f"a renaming is written OLD=NEW, as in module.encoder.=encoder., not {pair!r}")
        beginnings.append((old, new))

    def renamed(name: str) -> str:
        for old, new in beginnings:
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    return renamed if beginnings else None


def _write(content: dict[str, Any], out: Path) -> None:
    try:
        write_file(out, partial(torch.save, content))
    except (OSError, RuntimeError) as error:  # torch's writer raises a RuntimeError where a folder is missing
        raise WeightsError(f"{out} cannot be written ({error}); give a file in a folder that exists") from error
