"""The options of the launcher of timm's ``train.py``. This module imports without timm."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from layertune.metalr.rules import RULES
from layertune.metalr.settings import MetaLRSettings
from layertune.policies.by_name import method_name

__all__ = ["Scheme", "TrainOptions", "error_of", "read_options"]

# The grouper factories of layertune_timm, with the types of their numbers.
SCHEMES: dict[str, tuple[str, tuple[type, ...]]] = {
    "all_layers": ("all_layers", ()),
    "last_layer": ("last_layer", ()),
    "layer_wise": ("layer_wise", (int,)),
    "bidirectional": ("bidirectional", (int, int)),
    "layer_decay": ("layer_decay", (float,)),
    "norm_only": ("norm_only", ()),
}
WRITTEN = "all_layers, last_layer, layer_wise:K, bidirectional:M,N, layer_decay:RATE or norm_only"

SETTINGS: dict[str, tuple[type, str]] = {
    "hyper_lr": (float, "step size of the learning rates"),
    "rule": (str, f"how a rate follows its meta gradient: {', '.join(RULES)}"),
    "every": (int, "learn at each EVERY-th step"),
    "min_lr": (float, "smallest learned rate"),
    "max_lr": (float, "largest learned rate"),
    "max_change": (float, "largest factor of one adaptation"),
}
"""MetaLR's settings that the launcher takes, with their types and meanings."""


@dataclass(frozen=True)
class Scheme:
    """Name a grouper factory of ``layertune_timm``.

    Args:
        factory: Name of the factory.
        numbers: Its positional arguments.
        coarse: Whether layers are timm's coarse groups.
    """

    factory: str
    numbers: tuple[float, ...] = ()
    coarse: bool = False


@dataclass(frozen=True)
class TrainOptions:
    """Hold the options of the launcher.

    Args:
        scheme: The grouper that says which layers train.
        metalr: The settings of MetaLR, or None if no rates are learned.
        script: Path of timm's script, if it was given.
        arguments: The arguments of timm's script.
    """

    scheme: Scheme
    metalr: MetaLRSettings | None
    script: Path | None
    arguments: tuple[str, ...]


def read_options(arguments: Sequence[str]) -> TrainOptions:
    """Read ``[launcher's arguments] -- [timm's arguments]``. A mistake ends in one line and exit code 2.

    Args:
        arguments: The command line without the program.

    Example:
        >>> options = read_options(["--param-groups", "bidirectional:3,6", "--metalr", "streaming", "--", "data"])
        >>> options.scheme, options.arguments
        (Scheme(factory='bidirectional', numbers=(3, 6), coarse=False), ('data',))
        >>> options.metalr == MetaLRSettings(streaming=True)
        True
    """
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = _parser()
    given, unknown = parser.parse_known_args(arguments[:split])
    if unknown:
        hint = "" if "--" in arguments else "; arguments of timm's train.py come after --"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if given.param_groups is None and given.metalr is None:
        parser.error("nothing to do: give --param-groups, --metalr or both")
    try:
        scheme = _scheme(given.param_groups or "all_layers", coarse=given.coarse)
        metalr = _metalr(given)
    except ValueError as error:
        parser.error(str(error))
    return TrainOptions(scheme, metalr, given.script, tuple(arguments[split + 1 :]))


def error_of(message: str) -> NoReturn:
    """Print one line on standard error and exit with code 2, as for a mistake in the arguments."""
    parser = _parser()
    parser.exit(2, f"{parser.prog}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m layertune_timm.train",
        usage="%(prog)s [options] -- [arguments of timm's train.py]",
        description="Run timm's own train.py, unchanged, with a scheme of layers, learned rates, or both.",
        allow_abbrev=False,
    )
    parser.add_argument("--script", type=Path, help="path of timm's train.py [LAYERTUNE_TIMM_TRAIN, or ./train.py]")
    parser.add_argument("--param-groups", metavar="SCHEME", help=f"which layers train: {WRITTEN} [all_layers]")
    parser.add_argument("--coarse", action="store_true", help="layers are timm's coarse groups (stages)")
    parser.add_argument("--metalr", metavar="MODE", help="learn one rate per layer: streaming, without an extra pass")
    learning = parser.add_argument_group("with --metalr")
    defaults: dict[str, Any] = {field.name: field.default for field in fields(MetaLRSettings)}
    defaults |= {"hyper_lr": "by the rule", "max_lr": "no limit"}  # in place of None
    for name, (kind, meaning) in SETTINGS.items():
        learning.add_argument(_option(name), type=kind, help=f"{meaning} [{defaults[name]}]")
    return parser


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _scheme(text: str, *, coarse: bool) -> Scheme:
    name, _, rest = text.partition(":")
    factory, kinds = SCHEMES.get(method_name(name), ("", ()))
    written = rest.split(",") if rest else []
    if not factory or len(written) != len(kinds):
        raise ValueError(f"--param-groups takes {WRITTEN}, not {text!r}")
    try:
        numbers = tuple(kind(number) for kind, number in zip(kinds, written, strict=True))
    except ValueError:
        raise ValueError(f"--param-groups takes {WRITTEN}, with numbers, not {text!r}") from None
    return Scheme(factory, numbers, coarse)


def _metalr(given: argparse.Namespace) -> MetaLRSettings | None:
    values = {name: getattr(given, name) for name in SETTINGS}
    unused = [_option(name) for name, value in values.items() if value is not None]
    if given.metalr is None:
        if unused:
            raise ValueError(f"{unused[0]} has no effect without --metalr streaming")
        return None
    if given.metalr == "exact":
        raise ValueError(
            "--metalr exact needs a meta pass after each step, for which timm's train.py has no place; use streaming, "
            "or, in a loop of your own, layertune_timm.all_layers() with MetaLR's adapt()"
        )
    if given.metalr != "streaming":
        raise ValueError(f"--metalr takes streaming, not {given.metalr!r}")
    return MetaLRSettings.given(streaming=True, **values)
