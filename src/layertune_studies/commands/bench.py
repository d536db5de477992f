"""The commands ``layertune bench ...``: measure costs on this machine."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.text import Text

from layertune.cli.terminal import Json, cell, print_json, print_table, show
from layertune_studies.commands.extra import studies

__all__ = ["bench"]

bench = typer.Typer(no_args_is_help=True, help="Measure what learning the rates costs, on this machine.")

Networks = Annotated[list[str] | None, typer.Option(help="resnet18, unet3d or resnet18_adamw; may be given again.")]
Repeats = Annotated[int, typer.Option(min=1, help="Repeats of ten steps; give more where the machine is busy.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of torch; one is disturbed least by other work.")]


@bench.command("step")
def bench_step(network: Networks = None, repeats: Repeats = 4, threads: Threads = 1, as_json: Json = False) -> None:
    """Time and memory of a step with MetaLR, as ratios to the plain step; resnet18 and unet3d by default."""
    with studies():
        from layertune_studies.bench import networks, step

    names = _check_names(network or ["resnet18", "unet3d"], networks.STEP_NETWORKS)
    results = _measure_each(names, threads, lambda name: step.bench_step(name, repeats=repeats))
    contenders = ("exact", "every10", "streaming", "second_order", "published", "extra_memory")
    _show_networks("Ratios to the plain step", results, contenders, as_json=as_json)


@bench.command("alchemy")
def bench_alchemy(network: Networks = None, repeats: Repeats = 4, threads: Threads = 1, as_json: Json = False) -> None:
    """Time of a norm-only step and of the penalty, as ratios to the plain step; resnet18 and unet3d by default."""
    with studies():
        from layertune_studies.bench import alchemy, networks

    names = _check_names(network or ["resnet18", "unet3d"], networks.STEP_NETWORKS)
    results = _measure_each(names, threads, lambda name: alchemy.bench_alchemy(name, repeats=repeats))
    contenders = ("norm_only", "penalty", "penalty_step")
    _show_networks("Ratios to the plain step", results, contenders, limits=alchemy.LIMITS, as_json=as_json)


@bench.command("lightning")
def bench_lightning(
    network: Networks = None, repeats: Repeats = 4, threads: Threads = 1, as_json: Json = False
) -> None:
    """Time of a Trainer's steps with the callback, as ratios to the Trainer without it; resnet18 by default."""
    with studies():
        from layertune_studies.bench import lightning, networks

    names = _check_names(network or ["resnet18"], networks.STEP_NETWORKS)
    results = _measure_each(names, threads, lambda name: lightning.bench_lightning(name, repeats=repeats))
    contenders = ("streaming", "every10", "exact")
    _show_networks("Ratios to the Trainer without the callback", results, contenders, as_json=as_json)


@bench.command("monai")
def bench_monai(repeats: Repeats = 4, threads: Threads = 1, as_json: Json = False) -> None:
    """Time of a step of MONAI's engine with the handler, as ratios to the same engine without it."""
    with studies():
        from layertune_studies.bench import monai

    result = _measure_each(["MONAI"], threads, lambda _: monai.bench_monai(repeats=repeats))["MONAI"]
    _show_contenders("plain", result, monai.MONAI_LIMITS, as_json=as_json)


@bench.command("nnunet")
def bench_nnunet(
    repeats: Repeats = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Time of a training step of layertune's trainers in nnU-Net, as ratios to that of nnU-Net's own trainer."""
    with studies():
        from layertune_studies.bench import nnunet

    result = _measure_each(["nnU-Net"], threads, lambda _: nnunet.bench_nnunet(repeats=repeats, device=device))[
        "nnU-Net"
    ]
    _show_contenders("stock", result, nnunet.NNUNET_LIMITS, as_json=as_json)


@bench.command("trace")
def bench_trace(
    network: Annotated[list[str] | None, typer.Option(help="A network; may be given again. [all]")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Fresh interpreters per network; the median counts.")] = 1,
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Time and memory of mapping a network's layers, each network in an interpreter of its own."""
    with studies():
        from layertune_studies.bench import trace

    names = _check_names(network or list(trace.TRACE_NETWORKS), trace.TRACE_NETWORKS)
    results = _measure_each(names, threads, lambda name: trace.bench_trace(name, repeats=repeats))
    if as_json:
        print_json(results)
        return
    rows = [[name, *map(cell, result.values())] for name, result in results.items()]
    print_table("map_layers", ["Network", "Seconds", "Extra MB", "Import s", "Import MB", "Layers"], rows, left=1)


def _show_networks(
    title: str,
    results: Mapping[str, Mapping[str, Any]],
    contenders: Sequence[str],
    *,
    limits: Mapping[str, float] | None = None,
    as_json: bool,
) -> None:
    """Print a row for each network: the plain step, and the ratio of each contender."""
    if as_json:
        print_json(results)
        return
    keys = ["plain_ms", *(f"{name}_ratio" for name in contenders)]
    rows = [[name, *(cell(result[key]) for key in keys)] for name, result in results.items()]
    if limits is not None:
        rows.append(["at most", *(cell(limits.get(key)) for key in keys)])
    print_table(title, ["Network", *keys], rows, left=1)


def _show_contenders(plain: str, result: Mapping[str, Any], limits: Mapping[str, float], *, as_json: bool) -> None:
    """Print a row for each contender: its ratio to the plain step, and the upper bound of the ratio."""
    if as_json:
        print_json(result)
        return
    rows = [[name.removesuffix("_ratio"), cell(result[name]), cell(limit)] for name, limit in limits.items()]
    print_table(f"Ratios to the {plain} step", ["Contender", "Ratio", "At most"], rows, left=1)
    show(Text(f"The {plain} step took {result[f'{plain}_ms']:.0f} ms."))


def _measure_each(names: Sequence[str], threads: int, measure: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with studies(), Console(stderr=True).status("Measuring") as status:
            results = {}
            for name in names:
                status.update(f"Measuring {name}")
                results[name] = measure(name)
            return results
    finally:
        torch.set_num_threads(before)


def _check_names(names: Sequence[str], known: dict[str, Any]) -> list[str]:
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}", param_hint="--network")
    return list(dict.fromkeys(names))
