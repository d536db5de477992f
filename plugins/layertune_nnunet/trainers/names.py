"""Settings in a trainer's name, as in ``nnUNetTrainerMetaLR_hlr0p05_20epochs``."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from layertune_nnunet.errors import TrainerNameError

__all__ = ["NUMBER", "Suffix", "number", "read_suffixes", "suffixes_of", "written_in_name"]

NUMBER = r"(\d+(?:p\d+)?(?:em?\d+)?)"
"""Regular expression of a number in a name: ``p`` is the decimal point, ``em4`` is e-4."""


@dataclass(frozen=True)
class Suffix:
    """Describe one setting that a trainer's name can hold.

    A trainer lists its own suffixes in the class attribute ``suffixes``. It also takes the suffixes of all its base
    classes.

    Args:
        attribute: The class attribute that the suffix sets.
        pattern: Regular expression of the whole suffix, without the underscore.
        read: Function that turns the pattern's first group into the value. Without a group it gets the whole suffix.
        example: A suffix that the pattern matches, for error messages.
        meaning: What the example sets, for error messages.
        setting: The core's name of the setting, where it differs from ``attribute``.
    """

    attribute: str
    pattern: str
    read: Callable[[str], Any]
    example: str
    meaning: str
    setting: str = ""

    def match(self, text: str) -> tuple[Any] | None:
        """Return the value of a suffix in a tuple of one, or None where the pattern does not match."""
        match = re.fullmatch(self.pattern, text)
        return None if match is None else (self.read(match[1] if match.groups() else text),)


def number(text: str) -> float:
    """Read a number as names write it.

    Example:
        >>> number("0p05"), number("1em4"), number("20")
        (0.05, 0.0001, 20.0)
    """
    return float(text.replace("p", ".").replace("m", "-"))


def suffixes_of(trainer: type) -> list[Suffix]:
    """Return the suffixes that a trainer class takes, those of the class itself before those of its bases."""
    return [suffix for base in trainer.__mro__ for suffix in vars(base).get("suffixes", ())]


def read_suffixes(name: str, known: Sequence[Suffix]) -> dict[str, Any]:
    r"""Read the settings in a trainer's name.

    Args:
        name: The whole name. The part before the first underscore names the trainer itself.
        known: The suffixes that the trainer takes.

    Returns:
        The value for each class attribute that the name sets.

    Raises:
        TrainerNameError: A suffix is unknown, or two suffixes set the same attribute.

    Example:
        >>> epochs = Suffix("epochs", r"(\d+)epochs", int, "20epochs", "train for 20 epochs")
        >>> read_suffixes("nnUNetTrainerMetaLR_20epochs", [epochs])
        {'epochs': 20}
    """
    trainer, *texts = name.split("_")
    values: dict[str, Any] = {}
    for text in texts:
        matches = [(suffix.attribute, value[0]) for suffix in known if (value := suffix.match(text)) is not None]
        if not matches or matches[0][0] in values:
            fault = "is not one of its suffixes" if not matches else f"sets {matches[0][0]} a second time"
            listed = ";".join(f"\n  _{suffix.example}: {suffix.meaning}" for suffix in known)
            raise TrainerNameError(f"cannot read {name}: '_{text}' {fault}. {trainer} takes{listed}")
        values.update(matches[:1])
    return values


def written_in_name(message: str, trainer: type) -> str:
    r"""Add to an error message how a trainer's name gives the settings that the message names.

    Args:
        message: The message of an error about settings.
        trainer: The class of the trainer, whose suffixes are used.

    Example:
        >>> class Trainer:
        ...     suffixes = (Suffix("every", r"every(\d+)", int, "every5", "learn at each 5th step"),)
        >>> written_in_name("every must be a whole number from 1, not 0", Trainer)
        "every must be a whole number from 1, not 0; in a trainer's name: _every5"
    """
    examples = {suffix.setting or suffix.attribute: f"_{suffix.example}" for suffix in suffixes_of(trainer)}
    named = [example for setting, example in examples.items() if re.search(rf"\b{setting}\b", message)]
    return f"{message}; in a trainer's name: {', '.join(named)}" if named else message
