"""The options of the launcher of timm's ``train.py``. This module imports without timm."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from layertune.metalr.settings import RULE_NAMES, MetaLRSettings
from layertune.policies.by_name import method_name
from layertune.policies.l2_sp import ALPHA, BETA

__all__ = ["Opponent", "Scheme", "TrainOptions", "error_of", "read_options"]

# The grouper factories of layertune_timm, with the types of their numbers.
SCHEMES: dict[str, tuple[str, tuple[type, ...]]] = {
    "all_layers": ("all_layers", ()),
    "last_layer": ("last_layer", ()),
    "layer_wise": ("layer_wise", (int,)),
    "bidirectional": ("bidirectional", (int, int)),
    "layer_decay": ("layer_decay", (float,)),
    "inverse_size": ("inverse_size", (float,)),
    "norm_only": ("norm_only", ()),
}
SCHEMES_WRITTEN = (
    "all_layers, last_layer, layer_wise:K, bidirectional:M,N, layer_decay:RATE, inverse_size:EXPONENT or norm_only"
)

# The opponents, with the numbers that they take where none are given.
OPPONENTS: dict[str, tuple[float, ...]] = {
    "auto_rgn": (),
    "l2_sp": (ALPHA, BETA),
    "lp_ft": (5.0,),
    "gradual_unfreezing": (1.0,),
}
OPPONENTS_WRITTEN = "auto_rgn, l2_sp:ALPHA,BETA, lp_ft:EPOCHS or gradual_unfreezing:EPOCHS"

SETTINGS: dict[str, tuple[type, str]] = {
    "hyper_lr": (float, "step size of the learning rates"),
    "rule": (str, f"how a rate follows its meta gradient: {', '.join(RULE_NAMES)}"),
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
        numbers: The positional arguments of the factory, such as m and n.
        coarse: Whether layers are timm's coarse groups.
    """

    factory: str
    numbers: tuple[float, ...] = ()
    coarse: bool = False


@dataclass(frozen=True)
class Opponent:
    """Name a method of another paper.

    Args:
        name: Name of the method.
        numbers: Alpha and beta of ``l2_sp``; the number of epochs of a phase of ``lp_ft`` and ``gradual_unfreezing``.
    """

    name: str
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True)
class TrainOptions:
    """Hold the options of the launcher.

    Args:
        scheme: The grouper that says which layers train.
        metalr: The settings of MetaLR, or None if no rates are learned.
        script: Path of timm's script, if it was given.
        arguments: The arguments of timm's script.
        opponent: The method of another paper, or None.
    """

    scheme: Scheme
    metalr: MetaLRSettings | None
    script: Path | None
    arguments: tuple[str, ...]
    opponent: Opponent | None = None


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
    options, unknown = parser.parse_known_args(arguments[:split])
    if unknown:
        hint = "" if "--" in arguments else "; arguments of timm's train.py come after --"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if options.param_groups is None and options.metalr is None and options.opponent is None:
        parser.error("nothing to do: give --param-groups, --metalr or both, or --opponent")
    try:
        scheme = _scheme(options.param_groups or "all_layers", coarse=options.coarse)
        metalr = _metalr(options)
        opponent = None if options.opponent is None else _opponent(options.opponent, scheme, learns=metalr is not None)
    except ValueError as error:
        parser.error(str(error))
    return TrainOptions(scheme, metalr, options.script, tuple(arguments[split + 1 :]), opponent)


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
    parser.add_argument("--param-groups", metavar="SCHEME", help=f"which layers train: {SCHEMES_WRITTEN} [all_layers]")
    parser.add_argument("--coarse", action="store_true", help="layers are timm's coarse groups (stages)")
    parser.add_argument("--opponent", metavar="NAME", help=f"a method of another paper: {OPPONENTS_WRITTEN}")
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
        raise ValueError(f"--param-groups takes {SCHEMES_WRITTEN}, not {text!r}")
    try:
        numbers = tuple(kind(number) for kind, number in zip(kinds, written, strict=True))
    except ValueError:
        raise ValueError(f"--param-groups takes {SCHEMES_WRITTEN}, with numbers, not {text!r}") from None
    return Scheme(factory, numbers, coarse)


def _opponent(text: str, scheme: Scheme, *, learns: bool) -> Opponent:
    name, _, rest = text.partition(":")
    usual = OPPONENTS.get(name)
    try:
        numbers = tuple(float(number) for number in rest.split(",")) if rest else usual
    except ValueError:
        numbers = None
    phased = name in ("lp_ft", "gradual_unfreezing")
    if usual is None or numbers is None or len(numbers) != len(usual):
        raise ValueError(f"--opponent takes {OPPONENTS_WRITTEN}, not {text!r}")
    if phased and not (numbers[0] >= 1 and numbers[0].is_integer()):
        raise ValueError(f"--opponent {name} takes a whole number of epochs from 1, not {rest}")
    if phased and scheme.factory != "all_layers":
        raise ValueError(f"--opponent {name} says itself which layers train; leave --param-groups {scheme.factory} out")
    if name == "auto_rgn" and learns:
        raise ValueError("--opponent auto_rgn and --metalr both set the rates of layers; leave one out")
    return Opponent(name, numbers)


def _metalr(options: argparse.Namespace) -> MetaLRSettings | None:
    values = {name: getattr(options, name) for name in SETTINGS}
    unused = [_option(name) for name, value in values.items() if value is not None]
    if options.metalr is None:
        if unused:
            raise ValueError(f"{unused[0]} has no effect without --metalr streaming")
        return None
    if options.metalr == "exact":
        raise ValueError(
            "--metalr exact needs a meta pass after each step, for which timm's train.py has no place; use streaming, "
            "or, in a loop of your own, layertune_timm.all_layers() with MetaLR's adapt()"
        )
    if options.metalr != "streaming":
        raise ValueError(f"--metalr takes streaming, not {options.metalr!r}")
    return MetaLRSettings.given(streaming=True, **values)
