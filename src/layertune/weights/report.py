"""What of a file went into a network, and what did not."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

__all__ = ["LEAST_OF_NETWORK", "MIN_SHARE", "Loaded", "listed"]

MIN_SHARE = 0.5
"""Share of the parameters that has to match unless the user says otherwise."""
LEAST_OF_NETWORK = 0.1
"""Part of the required share that the network itself has to reach, however much of the file is used."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Report of ``load_weights``: what of a file went into a network, what did not, and why.

    Attributes:
        matched: Name in the network -> name in the file. A tensor that has several names in the network is listed
            under the first one.
        missing: Name in the network -> the reason why the tensor was left as it was.
        unused: Name in the file -> the reason why nothing took the tensor.
        by_order: The names in ``matched`` that differ on both sides and were paired by order and shape.
        prefix: How the file's names were changed to give those of the network, as ``"* -> swinViT.*"``; empty if they
            were not changed.
        share_of_network: How much of the network's parameters outside its head was loaded, counted in elements, 0 to 1.
        share_of_file: The same of the file's parameters.
        adapted: Name in the network -> how its tensor was made of the file's, for the adaptations that were asked for.
    """

    matched: Mapping[str, str]
    missing: Mapping[str, str]
    unused: Mapping[str, str]
    by_order: tuple[str, ...] = ()
    prefix: str = ""
    share_of_network: float = 1.0
    share_of_file: float = 1.0
    adapted: Mapping[str, str] = field(default_factory=dict)

    def suffices(self, least: float = MIN_SHARE) -> bool:
        """Whether so much matches that the weights are those of the network.

        An encoder's file is used whole and fills a small part of a segmentation network; an encoder is filled by a
        small part of a whole network's file. So the larger one of the two shares has to reach ``least``. A file of one
        tensor is used whole too, so the network's share has to reach a tenth of ``least``.

        Args:
            least: The share that is required, 0 to 1.
        """
        larger = max(self.share_of_network, self.share_of_file)
        return larger >= least and self.share_of_network >= LEAST_OF_NETWORK * least

    def summary(self) -> str:
        """Return one line for a log."""
        notes = [f"{len(self.by_order)} paired by order and shape"] if self.by_order else []
        notes += [self.prefix] if self.prefix else []
        total = len(self.matched) + len(self.missing)
        how = f" ({', '.join(notes)})" if notes else ""
        line = f"{len(self.matched)} of {total} tensors loaded{how}"
        if self.adapted:
            line += f"; adapted: {listed(f'{name} ({note})' for name, note in self.adapted.items())}"
        if self.missing:
            line += f"; left as they were: {listed(f'{name} ({why})' for name, why in self.missing.items())}"
        return f"{line}; {len(self.unused)} of the file not used" if self.unused else line

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


def listed(texts: Iterable[str]) -> str:
    """Write the first four texts, and how many there are beside them.

    Example:
        >>> listed(["a", "b", "c", "d", "e"])
        'a, b, c, d and 1 more'
    """
    everything = [text if text.isprintable() else ascii(text)[1:-1] for text in texts]
    shown = ", ".join(islice(everything, 4))
    return f"{shown} and {len(everything) - 4} more" if len(everything) > 4 else shown or "nothing"
