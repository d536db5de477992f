"""Values in a trainer's name: ``nnUNetTrainerMetaLR_hlr0p05_20epochs``."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from layertune_nnunet.errors import TrainerNameError

__all__ = ["NUMBER", "Suffix", "number", "read_suffixes", "suffixes_of"]

NUMBER = r"(\d+(?:p\d+)?(?:em?\d+)?)"
"""A number as names can hold it: ``p`` for the point, ``em4`` for e-4."""


@dataclass(frozen=True)
class Suffix:
    """One value that a trainer's name can set.

    A trainer lists its own in a class attribute ``suffixes``, and has those of all its bases too.

    Args:
        sets: the class attribute that takes the value.
        pattern: regular expression of the whole suffix, without underscores.
        read: from the pattern's first group (the whole suffix if it has none) to the value.
        example: a suffix that the pattern takes.
        meaning: what the example says, for the message on a name that cannot be read.
    """

    sets: str
    pattern: str
    read: Callable[[str], Any]
    example: str
    meaning: str

    def value(self, text: str) -> tuple[Any] | None:
        """The value in a suffix, alone in a tuple; ``None`` where this is not its pattern."""
        match = re.fullmatch(self.pattern, text)
        return None if match is None else (self.read(match[1] if match.groups() else text),)


def number(text: str) -> float:
    """Read a number as names hold it.

    Example:
        >>> number("0p05"), number("1em4"), number("20")
        (0.05, 0.0001, 20.0)
    """
    return float(text.replace("p", ".").replace("m", "-"))


def suffixes_of(trainer: type) -> list[Suffix]:
    """The suffixes that a trainer class knows, the special ones before the general ones."""
    return [suffix for base in trainer.__mro__ for suffix in vars(base).get("suffixes", ())]


def read_suffixes(name: str, known: Sequence[Suffix]) -> dict[str, Any]:
    r"""The values in a trainer's name.

    Args:
        name: the whole name; what comes before the first underscore is the trainer itself.
        known: what the trainer knows.

    Returns:
        Class attribute -> value.

    Raises:
        TrainerNameError: a suffix that is not known, or two that set one attribute.

    Example:
        >>> epochs = Suffix("epochs", r"(\d+)epochs", int, "20epochs", "train for 20 epochs")
        >>> read_suffixes("nnUNetTrainerMetaLR_20epochs", [epochs])
        {'epochs': 20}
    """
    trainer, *texts = name.split("_")
    values: dict[str, Any] = {}
    for text in texts:
        found = [(suffix.sets, value[0]) for suffix in known if (value := suffix.value(text)) is not None]
        if not found or found[0][0] in values:
            fault = "is not one of its suffixes" if not found else f"sets {found[0][0]} a second time"
            listed = "".join(f"\n  _{suffix.example:<12} {suffix.meaning}" for suffix in known)
            raise TrainerNameError(f"cannot read {name}: '_{text}' {fault}. {trainer} takes{listed}")
        values.update(found[:1])
    return values
