"""What the launcher of timm's ``train.py`` is told; imports without timm."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from layertune.metalr.rules import RULES

__all__ = ["Scheme", "TrainOptions", "error_of", "read_options"]

# Names of layertune_timm's grouper factories, with the kinds of their numbers.
SCHEMES: dict[str, tuple[str, tuple[type, ...]]] = {
    "all": ("all_layers", ()),
    "last": ("last_layer", ()),
    "layer_wise": ("layer_wise", (int,)),
    "bidirectional": ("bidirectional", (int, int)),
    "layer_decay": ("layer_decay", (float,)),
    "norm_only": ("norm_only", ()),
}
WRITTEN = "all, last, layer_wise:K, bidirectional:M,N, layer_decay:RATE or norm_only"


@dataclass(frozen=True)
class Scheme:
    """A grouper factory of ``layertune_timm`` by name, with its numbers, and whether layers are timm's coarse ones."""

    factory: str
    numbers: tuple[float, ...] = ()
    coarse: bool = False


@dataclass(frozen=True)
class TrainOptions:
    """The launcher's options: scheme, MetaLR's settings (``None`` for no learning), script, and timm's arguments."""

    scheme: Scheme
    metalr: dict[str, Any] | None
    script: Path | None
    arguments: tuple[str, ...]


def read_options(arguments: Sequence[str]) -> TrainOptions:
    """Read ``[launcher's arguments] -- [timm's arguments]``; a mistake ends in one line and exit code 2.

    Example:
        >>> options = read_options(["--param-groups", "bidirectional:3,6", "--metalr", "streaming", "--", "data"])
        >>> options.scheme, options.arguments
        (Scheme(factory='bidirectional', numbers=(3, 6), coarse=False), ('data',))
        >>> options.metalr
        {'streaming': True}
    """
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = _parser()
    given, unknown = parser.parse_known_args(arguments[:split])
    if unknown:
        hint = "" if "--" in arguments else "; arguments of timm's train.py stand after --"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if given.param_groups is None and given.metalr is None:
        parser.error("nothing to do: give --param-groups, --metalr or both")
    try:
        scheme = _scheme(given.param_groups or "all", coarse=given.coarse)
        metalr = _metalr(given)
    except ValueError as error:
        parser.error(str(error))
    return TrainOptions(scheme, metalr, given.script, tuple(arguments[split + 1 :]))


def error_of(message: str) -> NoReturn:
    """End with one line on the standard error stream and exit code 2, as for a mistake in the arguments."""
    parser = _parser()
    parser.exit(2, f"{parser.prog}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m layertune_timm.train",
        usage="%(prog)s [options] -- [arguments of timm's train.py]",
        description="Run timm's own train.py, unchanged, with a scheme of layers, learned rates, or both.",
        allow_abbrev=False,
    )
    parser.add_argument("--script", type=Path, help="timm's train.py [LAYERTUNE_TIMM_TRAIN, or ./train.py]")
    parser.add_argument("--param-groups", metavar="SCHEME", help=f"which layers train: {WRITTEN} [all]")
    parser.add_argument("--coarse", action="store_true", help="layers are timm's coarse groups (stages)")
    parser.add_argument("--metalr", metavar="MODE", help="learn one rate per layer: streaming, at no extra pass")
    learning = parser.add_argument_group("with --metalr")
    learning.add_argument("--hyper-lr", type=float, help="step size of the learning rates [what suits the rule]")
    learning.add_argument("--rule", choices=list(RULES), help="[joint]")
    learning.add_argument("--every", type=int, help="learn at each k-th step [1]")
    learning.add_argument("--min-lr", type=float, help="floor of the learned rates [1e-6]")
    learning.add_argument("--max-lr", type=float, help="ceiling [none]")
    learning.add_argument("--max-change", type=float, help="largest factor of one adaptation [2]")
    return parser


def _scheme(text: str, *, coarse: bool) -> Scheme:
    name, _, rest = text.partition(":")
    factory, kinds = SCHEMES.get(name, ("", ()))
    written = rest.split(",") if rest else []
    if not factory or len(written) != len(kinds):
        raise ValueError(f"--param-groups takes {WRITTEN}, not {text!r}")
    try:
        numbers = tuple(kind(number) for kind, number in zip(kinds, written, strict=True))
    except ValueError:
        raise ValueError(f"--param-groups takes {WRITTEN}, with numbers, not {text!r}") from None
    return Scheme(factory, numbers, coarse)


def _metalr(given: argparse.Namespace) -> dict[str, Any] | None:
    names = ("hyper_lr", "rule", "every", "min_lr", "max_lr", "max_change")
    settings = {name: value for name in names if (value := getattr(given, name)) is not None}
    if given.metalr is None and settings:
        raise ValueError(f"--{next(iter(settings)).replace('_', '-')} has no effect without --metalr streaming")
    if given.metalr == "exact":
        raise ValueError(
            "--metalr exact takes a meta pass after each step, for which timm's train.py has no place; use streaming, "
            "or, in a loop of your own, layertune_timm.all_layers() with MetaLR's adapt()"
        )
    if given.metalr not in (None, "streaming"):
        raise ValueError(f"--metalr takes streaming, not {given.metalr!r}")
    return None if given.metalr is None else {"streaming": True, **settings}
