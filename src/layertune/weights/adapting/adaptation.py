"""Adapt the tensors that belong to a network by name and not by shape, as far as the user asks."""

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, nn

from layertune.errors import WeightsError
from layertune.layers.convolutions import Convolution, TransposedConvolution
from layertune.weights.adapting.channels import CHANNELS, adapt_channels
from layertune.weights.adapting.kernels import inflate, resize_kernel
from layertune.weights.adapting.positions import expected_grid, is_positional, resize_positions
from layertune.weights.matching import BESIDE_MISFIT, Matching
from layertune.weights.structure import module_of
from layertune.weights.targets import Source, Targets

__all__ = ["ADAPTATIONS", "adapt_misfits", "read_adaptations"]

ADAPTATIONS = (*CHANNELS, "classes", "inflate", "kernel_size", "positions", "decoder")
"""The names of all adaptations."""


@dataclass
class _Piece:
    """A tensor of the file that is being brought to the shape of its partner in the network.

    Attributes:
        own: The name of the partner in the network.
        tensor: The tensor of the file, with all changes that were made so far.
        target: The partner, a tensor of the network, which gives the wanted shape.
        module: The module that owns the partner.
        notes: A note of each change, for the report.
    """

    own: str
    tensor: Tensor
    target: Tensor
    module: nn.Module
    notes: list[str]

    def replace(self, tensor: Tensor | None, note: str) -> None:
        """Take a new tensor, if there is one."""
        if tensor is not None:
            self.tensor = tensor
            self.notes.append(note)

    @property
    def output_axis(self) -> int:
        """The axis of the output channels."""
        return 1 if isinstance(self.module, TransposedConvolution) else 0

    def differs_in(self, axis: int) -> tuple[int, int] | None:
        """Return the sizes of an axis, before and wanted, if nothing else differs."""
        pairs = list(zip(self.tensor.shape, self.target.shape, strict=False))
        same_dims = self.tensor.dim() == self.target.dim() > axis
        if not same_dims or [index for index, (old, new) in enumerate(pairs) if old != new] != [axis]:
            return None
        return pairs[axis]


def read_adaptations(adapt: str | Collection[str]) -> set[str]:
    """Check the names of adaptations.

    Args:
        adapt: One of ``ADAPTATIONS`` or several.

    Raises:
        WeightsError: A name is unknown, or two contradict each other.
    """
    asked = {adapt} if isinstance(adapt, str) else set(adapt)
    if unknown := sorted(asked - set(ADAPTATIONS)):
        raise WeightsError(f"adapt: {unknown[0]!r} is none of {', '.join(ADAPTATIONS)}")
    if len(asked & set(CHANNELS)) > 1:
        raise WeightsError(f"adapt: choose one of {', '.join(CHANNELS)}; each makes the input channels in another way")
    return asked


def adapt_misfits(matching: Matching, source: Source, targets: Targets, asked: set[str]) -> None:
    """Adapt the tensors that belong together and differ in shape, and count them as pairs.

    Args:
        matching: The pairs so far and the tensors that differ in shape. Adapted tensors are added to its pairs.
        source: The tensors of the file.
        targets: The tensors of the network.
        asked: The adaptations to use, checked by ``read_adaptations``.
    """
    pieces = [
        _Piece(own, _in_full(source.tensors[file]), targets.tensors[own], targets.owner(own), [])
        for own, file in matching.misfits.items()
        if targets.differs_in_shape_alone(own, source.tensors[file])
    ]
    if "inflate" in asked:
        _inflate(pieces)
    if "kernel_size" in asked:
        _resize_kernels(pieces)
    for way in set(CHANNELS) & set(asked):
        _adapt_channels(pieces, matching, targets, way)
    if "classes" in asked:
        _add_classes(pieces, targets)
    if "positions" in asked:
        _resize_positions(pieces, targets)
    for piece in pieces:
        if piece.notes and piece.tensor.shape == piece.target.shape:
            matching.adapt(piece.own, piece.tensor, ", ".join(piece.notes))
        elif asked - {"decoder"}:
            matching.reasons[piece.own] += ", and no adaptation that is asked for makes it fit"
    adapted = {module_of(own) for own in matching.adapted}
    for own in [
        own for own, reason in matching.reasons.items() if reason == BESIDE_MISFIT and module_of(own) in adapted
    ]:
        matching.accept(own)


def _inflate(pieces: Collection[_Piece]) -> None:
    for piece in pieces:
        if isinstance(piece.module, Convolution):
            old, new = (_times(tensor.shape[2:]) for tensor in (piece.tensor, piece.target))
            piece.replace(inflate(piece.tensor, piece.target.shape, piece.module), f"2D kernel inflated {old} -> {new}")


def _resize_kernels(pieces: Collection[_Piece]) -> None:
    for piece in pieces:
        if isinstance(piece.module, Convolution):
            old, new = (_times(tensor.shape[2:]) for tensor in (piece.tensor, piece.target))
            piece.replace(resize_kernel(piece.tensor, piece.target.shape, piece.module), f"kernel {old} -> {new}")


def _adapt_channels(pieces: Collection[_Piece], matching: Matching, targets: Targets, way: str) -> None:
    """Adapt the first convolution, and all others that read as many channels of the image."""
    piece_of = {piece.own: piece for piece in pieces}
    convolutions = (own for own in targets.tensors if isinstance(targets.owner(own), Convolution))
    first = next((own for own in convolutions if own in piece_of or own in matching.pairs), "")
    image = piece_of[first].differs_in(1) if first in piece_of else None
    for piece in pieces:
        plain = isinstance(piece.module, Convolution) and piece.module.groups == 1 and not piece.output_axis
        if image is not None and plain and piece.differs_in(1) == image:
            kernel = adapt_channels(piece.tensor, image[1], way)
            how = "their sum" if image[1] == 1 else CHANNELS[way]
            piece.replace(kernel, f"input channels {image[0]} -> {image[1]} ({how})")


def _add_classes(pieces: Collection[_Piece], targets: Targets) -> None:
    """Add classes to the last layer, and to other heads that have as many, as those for deep supervision."""
    last = module_of(targets.last_parameter())
    matrices = [piece for piece in pieces if piece.tensor.dim() > 1 and not is_positional(piece.own)]
    of_last = [piece.differs_in(piece.output_axis) for piece in matrices if module_of(piece.own) == last]
    classes = of_last[0] if of_last else None
    if classes is None or classes[0] > classes[1]:
        return
    heads = {
        module_of(piece.own)
        for piece in matrices
        if piece.differs_in(piece.output_axis) == classes
        and (module_of(piece.own) == last or all(size == 1 for size in piece.target.shape[2:]))
    }
    old, new = classes
    for piece in pieces:
        axis = piece.output_axis if piece.tensor.dim() > 1 else 0
        if module_of(piece.own) in heads and piece.differs_in(axis) == classes:
            tensor = piece.target.detach().clone()
            tensor.narrow(axis, 0, old).copy_(piece.tensor)
            piece.replace(tensor, f"classes {old} -> {new} (the first {old} keep their weights, new ones are fresh)")


def _resize_positions(pieces: Collection[_Piece], targets: Targets) -> None:
    for piece in pieces:
        if is_positional(piece.own):
            grid, dims = expected_grid(piece.own, targets.modules)
            resized = resize_positions(piece.tensor, piece.target.shape, grid, dims)
            old, new = (_times(tensor.shape) for tensor in (piece.tensor, piece.target))
            piece.replace(resized, f"positions {old} -> {new} (interpolated)")


def _in_full(tensor: Tensor) -> Tensor:
    """Return a tensor in at least single precision, for sums."""
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def _times(sizes: Collection[int]) -> str:
    return "x".join(map(str, sizes))
