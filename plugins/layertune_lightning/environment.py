"""Learned rates in every Trainer of a process, by an environment variable."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from layertune_lightning.errors import SettingError

if TYPE_CHECKING:
    from pytorch_lightning import Callback

__all__ = ["VARIABLE", "callbacks", "parse_settings"]

VARIABLE = "LAYERTUNE_LIGHTNING"


def callbacks() -> "list[Callback]":
    """What Lightning adds to each Trainer, from its entry points ``pytorch_lightning.callbacks_factory``.

    The package ``lightning`` has the same under ``lightning.pytorch.callbacks_factory``.

    Returns:
        Nothing, unless the environment variable ``LAYERTUNE_LIGHTNING`` holds settings of ``MetaLRCallback``, as in
        ``LAYERTUNE_LIGHTNING="hyper_lr=0.1,rule=joint,streaming=true"``.

    Raises:
        SettingError: it holds something else.

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
    """Settings from ``name=value,name=value``.

    Raises:
        SettingError: a part that is no pair, a name that is unknown or doubled, or a value of the wrong kind.

    Example:
        >>> parse_settings("hyper_lr=0.1, streaming=true")
        {'hyper_lr': 0.1, 'streaming': True}
    """
    settings: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in _KINDS or name in settings:
            fault = "is given twice" if name in settings else "is not one of them"
            raise SettingError(
                f"{VARIABLE} holds settings as in 'hyper_lr=0.1,streaming=true', of {', '.join(_KINDS)}; "
                f"{part.strip()!r} {fault}"
            )
        try:
            settings[name] = _KINDS[name](value)
        except ValueError:
            kind = _KINDS[name].__name__.strip("_").replace("_", " ")
            raise SettingError(f"{VARIABLE}: {value!r} will not do for {name} ({kind})") from None
    return settings


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


_KINDS: dict[str, Callable[[str], Any]] = {
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
