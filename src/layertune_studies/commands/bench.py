"""The commands ``layertune bench ...``: measure costs on this machine."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.text import Text

from layertune.cli.terminal import Json, cell, print_json, print_table, show
from layertune_studies.commands.extra import studies

__all__ = ["bench"]

bench = typer.Typer(no_args_is_help=True, help="Measure what learning the rates costs, on this machine.")

Threads = Annotated[int, typer.Option(min=1, help="Threads of torch; one is disturbed least by other work.")]


@bench.command("step")
def bench_step(
    network: Annotated[
        list[str] | None, typer.Option(help="resnet18, unet3d (the default two) or resnet18_adamw.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Of ten steps each; more where the machine is busy.")] = 4,
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Time and memory of a step with MetaLR, as ratios to the plain step; all in one process, in turns."""
    with studies():
        from layertune_studies.bench import networks, step

    chosen = _chosen(network or ["resnet18", "unet3d"], networks.STEP_NETWORKS)
    results = _measured(chosen, threads, lambda name: step.bench_step(name, repeats=repeats))
    if as_json:
        print_json(results)
        return
    shown = ("exact", "every10", "streaming", "second_order", "published", "extra_memory")
    keys = ["plain_ms", *(f"{name}_ratio" for name in shown)]
    rows = [[name, *(cell(result[key]) for key in keys)] for name, result in results.items()]
    print_table("Ratios to the plain step", ["Network", *keys], rows, left=1)


@bench.command("trace")
def bench_trace(
    network: Annotated[list[str] | None, typer.Option(help="Only this network; may be given again.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Fresh interpreters per network; the median counts.")] = 1,
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Time and memory of placing a network's layers, each network in an interpreter of its own."""
    with studies():
        from layertune_studies.bench import trace

    chosen = _chosen(network or list(trace.TRACE_NETWORKS), trace.TRACE_NETWORKS)
    results = _measured(chosen, threads, lambda name: trace.bench_trace(name, repeats=repeats))
    if as_json:
        print_json(results)
        return
    rows = [[name, *map(cell, result.values())] for name, result in results.items()]
    print_table("map_layers", ["Network", "Seconds", "Extra MB", "Import s", "Import MB", "Layers"], rows, left=1)


@bench.command("nnunet")
def bench_nnunet(
    repeats: Annotated[int, typer.Option(min=1, help="Of ten steps each; more where the machine is busy.")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Time of a training step of layertune's trainers in nnU-Net, as ratios to nnU-Net's own; in one process."""
    with studies():
        from layertune_studies.bench import nnunet

    measured = _measured(["nnU-Net"], threads, lambda _: nnunet.bench_nnunet(repeats=repeats, device=device))
    result = measured["nnU-Net"]
    if as_json:
        print_json(result)
        return
    limits = nnunet.NNUNET_LIMITS
    rows = [[name.removesuffix("_ratio"), cell(result[name]), cell(limit)] for name, limit in limits.items()]
    print_table("Ratios to nnU-Net's step", ["Trainer", "Ratio", "At most"], rows, left=1)
    show(Text(f"nnU-Net's own step took {result['stock_ms']:.0f} ms."))


@bench.command("lightning")
def bench_lightning(
    network: Annotated[list[str] | None, typer.Option(help="resnet18 (the default), resnet18_adamw or unet3d.")] = None,
    repeats: Annotated[int, typer.Option(min=2, help="Fits of twenty steps; more where the machine is busy.")] = 4,
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Time of a Trainer's steps with the callback, as ratios to the same Trainer without it; in one process."""
    with studies():
        from layertune_studies.bench import lightning, networks

    chosen = _chosen(network or ["resnet18"], networks.STEP_NETWORKS)
    results = _measured(chosen, threads, lambda name: lightning.bench_lightning(name, repeats=repeats))
    if as_json:
        print_json(results)
        return
    keys = ["plain_ms", "streaming_ratio", "every10_ratio", "exact_ratio"]
    rows = [[name, *(cell(result[key]) for key in keys)] for name, result in results.items()]
    print_table("Ratios to the Trainer without the callback", ["Network", *keys], rows, left=1)


@bench.command("alchemy")
def bench_alchemy(
    network: Annotated[
        list[str] | None, typer.Option(help="resnet18, unet3d (the default two) or resnet18_adamw.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Of ten steps each; more where the machine is busy.")] = 4,
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Time of a norm-only step and of the penalty, as ratios to the plain step; all in one process, in turns."""
    with studies():
        from layertune_studies.bench import alchemy, networks

    chosen = _chosen(network or ["resnet18", "unet3d"], networks.STEP_NETWORKS)
    results = _measured(chosen, threads, lambda name: alchemy.bench_alchemy(name, repeats=repeats))
    if as_json:
        print_json(results)
        return
    keys = ["plain_ms", "norm_only_ratio", "penalty_ratio", "penalty_step_ratio"]
    rows = [[name, *(cell(result[key]) for key in keys)] for name, result in results.items()]
    rows.append(["at most", *(cell(alchemy.LIMITS.get(key)) for key in keys)])
    print_table("Ratios to the plain step", ["Network", *keys], rows, left=1)


@bench.command("monai")
def bench_monai(
    repeats: Annotated[int, typer.Option(min=2, help="Runs of twenty steps; more where the machine is busy.")] = 4,
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Time of MONAI's engine with the handler, as ratios to the same engine without it; in one process."""
    with studies():
        from layertune_studies.bench import monai

    result = _measured(["MONAI"], threads, lambda _: monai.bench_monai(repeats=repeats))["MONAI"]
    if as_json:
        print_json(result)
        return
    limits = monai.MONAI_LIMITS
    rows = [[name.removesuffix("_ratio"), cell(result[name]), cell(limit)] for name, limit in limits.items()]
    print_table(f"Ratios to the plain step of {result['plain_ms']:.0f} ms", ["Mode", "Ratio", "At most"], rows, left=1)


def _measured(names: Sequence[str], threads: int, measure: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
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


def _chosen(names: Sequence[str], known: dict[str, Any]) -> list[str]:
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}", param_hint="--network")
    return list(dict.fromkeys(names))
