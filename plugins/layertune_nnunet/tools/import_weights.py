"""Foreign weights as a file that ``nnUNetv2_train -pretrained_weights`` takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from layertune import Loaded, WeightsError, load_weights, read_weights
from layertune_nnunet.tools.planned_network import planned_network

__all__ = ["HEADS", "Imported", "import_weights", "renaming"]

HEADS = ".seg_layers."
"""In the name of what nnU-Net never takes from a file: the segmentation layers."""


@dataclass(frozen=True)
class Imported:
    """What became of foreign weights.

    Attributes:
        out: the file for ``-pretrained_weights``.
        loaded: what matched, what did not, and why.
        seed: of what did not match and holds initial weights.
    """

    out: Path
    loaded: Loaded
    seed: int

    @property
    def fresh(self) -> dict[str, str]:
        """What of the file are initial weights, and why; without the segmentation layers, which nnU-Net leaves."""
        return {name: why for name, why in self.loaded.missing.items() if HEADS not in name}

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
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
) -> Imported:
    """Write foreign weights, as far as they fit a plan's network, as a file of pre-trained weights for nnU-Net.

    nnU-Net demands all weights but those of the segmentation layers. What the file lacks, or has in another shape, is
    filled with the network's own initial weights, seeded, so that an encoder alone can be loaded too.

    Args:
        weights: a file that ``layertune.read_weights`` reads.
        out: the file to write, whole or not at all.
        plans: nnU-Net's plan.
        dataset_json: ``dataset.json`` beside it.
        configuration: ``"3d_fullres"``, ...
        seed: of the initial weights.
        rename: name in the file -> name in the network; then nothing is guessed.

    Raises:
        WeightsError: the weights cannot be read, or nothing of them but segmentation layers fits; nothing is written.
        PlansError: there is no such plan or configuration.
    """
    found = read_weights(weights)
    network = planned_network(plans, dataset_json, configuration, seed=seed).network
    loaded = load_weights(network, found, rename=rename)
    if all(HEADS in name for name in loaded.matched):
        raise WeightsError(f"of {weights} only segmentation layers fit the network, and nnU-Net loads none of them")
    _write({"network_weights": network.state_dict()}, out)
    return Imported(out, loaded, seed)


def renaming(pairs: Sequence[str]) -> Callable[[str], str] | None:
    """Read ``OLD=NEW`` pairs, each for the beginning of names; the first that fits a name changes it.

    Raises:
        WeightsError: a text is no pair.

    Example:
        >>> renamed = renaming(["down_tr=encoder.stages.", "out_tr=head"])
        >>> renamed("down_tr64.weight"), renamed("other")
        ('encoder.stages.64.weight', 'other')
    """
    beginnings = []
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not old or not equals:
            raise WeightsError(f"a renaming is written OLD=NEW, as in module.encoder.=encoder.; not {pair!r}")
        beginnings.append((old, new))

    def renamed(name: str) -> str:
        for old, new in beginnings:
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    return renamed if beginnings else None


def _write(content: dict[str, Any], out: Path) -> None:
    temporary = out.with_name(f".{out.name}.{uuid4().hex}")
    try:
        torch.save(content, temporary)
        temporary.replace(out)
    except (OSError, RuntimeError) as error:  # torch's writer raises a RuntimeError where a folder is missing
        raise WeightsError(f"{out} cannot be written ({error}); give a file in a folder that is there") from error
    finally:
        temporary.unlink(missing_ok=True)
