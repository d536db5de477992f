"""Add learned rates to every Trainer of a process by an environment variable."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from layertune_lightning.errors import SettingError

if TYPE_CHECKING:
    from pytorch_lightning import Callback

__all__ = ["VARIABLE", "callbacks", "parse_settings"]

VARIABLE = "LAYERTUNE_LIGHTNING"


def callbacks() -> "list[Callback]":
    """Return the callbacks that Lightning adds to each Trainer.

    Lightning calls this function through its entry points ``pytorch_lightning.callbacks_factory``, and the package
    ``lightning`` through ``lightning.pytorch.callbacks_factory``.

    Returns:
        A ``MetaLRCallback`` if the environment variable ``LAYERTUNE_LIGHTNING`` holds settings for it, as in
        ``LAYERTUNE_LIGHTNING="hyper_lr=0.1,rule=joint,streaming=true"``; an empty list otherwise.

    Raises:
        SettingError: The variable cannot be read.
        LayertuneError: A setting is out of range.

    Example:
        >>> os.environ.get(VARIABLE), callbacks()
        (None, [])
    """
    text = os.environ.get(VARIABLE, "")
    if not text.strip():
        return []
    settings = parse_settings(text)
    from layertune_lightning import MetaLRCallback

    return [MetaLRCallback(**settings)]


def parse_settings(text: str) -> dict[str, Any]:
    """Read settings from ``name=value,name=value``.

    Raises:
        SettingError: A part is not of this form, a name is unknown or comes twice, or a value has the wrong type.

    Example:
        >>> parse_settings("hyper_lr=0.1, streaming=true")
        {'hyper_lr': 0.1, 'streaming': True}
    """
    settings: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in _TYPES or name in settings:
            fault = "is given twice" if name in settings else "is not one of them"
            raise SettingError(
                f"{VARIABLE} takes settings as in 'hyper_lr=0.1,streaming=true', of {', '.join(_TYPES)}; "
                f"{part.strip()!r} {fault}"
            )
        try:
            settings[name] = _TYPES[name](value)
        except ValueError:
            wanted = _TYPES[name].__name__.strip("_").replace("_", " ")
            raise SettingError(f"{VARIABLE}: {name} takes a value of type {wanted}, not {value!r}") from None
    return settings


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


_TYPES: dict[str, Callable[[str], Any]] = {
    "hyper_lr": float,
    "rule": str,
    "every": int,
    "streaming": _true_or_false,
    "min_lr": float,
    "max_lr": float,
    "max_change": float,
    "optimizer": int,
    "figure": str,
    "output_dir": str,
}
