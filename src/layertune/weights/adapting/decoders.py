"""Decoders with another number of stages, whose numbers do not say which stage is which."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from layertune.weights.matching import Matching
from layertune.weights.targets import Source, Targets

__all__ = ["leave_out_decoders", "stages_of_another_depth"]

DECODER = re.compile(r"(?i)decoder|up")
"""What a word in the path of a decoder begins with: decoder, up, upsamples, up_layers."""


def leave_out_decoders(matching: Matching, source: Source, targets: Targets, *, asked: bool) -> set[str]:
    """Leave the numbered stages of a decoder fresh if the file has another number of them.

    Args:
        matching: The pairs so far. Tensors that stay as they are in the network are removed from its pairs.
        source: The tensors of the file.
        targets: The tensors of the network.
        asked: Whether the user wants such decoders fresh.

    Returns:
        The parameters of the decoders that are fresh because the user wants them so.
    """
    decoders = stages_of_another_depth(targets.tensors, source.names.values())
    for own in targets.tensors:
        path = next((path for path in decoders if own.startswith(path)), None)
        if path is not None:
            start = "left fresh as asked" if asked else "ambiguous"
            matching.leave_out(own, f"{start}: {path.removesuffix('.')} has {decoders[path]}")
    roots = tuple(_decoder_of(path) for path in decoders)
    return {own for own in targets.tensors if asked and roots and own.startswith(roots)}


def _decoder_of(path: str) -> str:
    words = path.split(".")
    first = next(index for index, word in enumerate(words) if DECODER.match(word))
    return ".".join(words[: first + 1]) + "."


def stages_of_another_depth(own: Iterable[str], file: Iterable[str]) -> dict[str, str]:
    """Find numbered stages of decoders of which the file has another number.

    A decoder is numbered from its deepest stage, so with another depth its stage 0 belongs to another resolution. Where
    widths are equal, as the 320 channels of nnU-Net's deepest stages, shapes do not tell.

    Args:
        own: The names in the network.
        file: The names that the tensors of the file would have in the network.

    Returns:
        Path of the list of stages, with its last dot -> what differs.

    Example:
        >>> stages_of_another_depth(["up.0.weight", "up.1.weight"], ["up.0.weight", "up.1.weight", "up.2.weight"])
        {'up.': '3 stages in the file and 2 here'}
    """
    own_stages, file_stages = _stages(own), _stages(file)
    return {
        path: f"{len(file_stages[path])} stages in the file and {len(stages)} here"
        for path, stages in own_stages.items()
        if path in file_stages and len(file_stages[path]) != len(stages)
    }


def _stages(names: Iterable[str]) -> Mapping[str, set[str]]:
    stages: dict[str, set[str]] = defaultdict(set)
    for name in names:
        words = name.split(".")[:-1]
        number = next((index for index, word in enumerate(words) if word.isdecimal()), None)
        if number and any(DECODER.match(word) for word in words[:number]):
            stages[".".join(words[:number]) + "."].add(words[number])
    return stages
