"""Network Alchemy on real cases: the hippocampus study of the documentation's page on it.

    python -m layertune_studies.hippocampus_alchemy --data DIR --out DIR

The thesis' 3D U-Net with batch normalisation, narrowed, is pre-trained by Models Genesis' pretext on cases of the
Decathlon's Task04_Hippocampus without their labels (``same``), and on brains made from the MNI152 template in another
contrast (``other``). Both, and random weights (``scratch``), are fine-tuned on 8 labelled cases: with each phase of
Network Alchemy on and off (tab. 4.1), with the penalty from all three (tab. 4.2), with the norms alone (tab. 4.3), and
ranked. Rates are chosen on validation cases, test cases are reported on. An interrupted study goes on where it was.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from layertune import LayertuneError
from layertune_studies.demo_store import Store
from layertune_studies.hippocampus_alchemy_data import Plan, Sets, make_sets
from layertune_studies.hippocampus_alchemy_figures import draw_figures
from layertune_studies.hippocampus_alchemy_tables import markdown
from layertune_studies.hippocampus_alchemy_training import EARLY, Phases, ends, phase_grid, pretrain, supervise
from layertune_studies.hippocampus_alchemy_work import Workshop

__all__ = ["CHECKPOINTS", "STARTS", "run_study"]

STARTS = ("scratch", "other", "same")
CHECKPOINTS = (*STARTS, "other, early", "same, early", "supervised")

Weights = dict[str, Tensor] | None


def run_study(plan: Plan, data: Path, out: Path, *, tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run the study, or go on with it; after each seed it writes ``results.json``, ``tables.md`` and the figures.

    Args:
        plan: what to do.
        data: folder that holds ``Task04_Hippocampus``.
        out: is made, or gone on with.
        tell: told each finished piece.

    Returns:
        What ``results.json`` holds.

    Raises:
        DataError: the cases are not there, or too few.
        FolderError: the folder holds another run or other things.
    """
    sets = make_sets(plan, data)
    store = Store(out, {"study": "hippocampus_alchemy", **asdict(plan)})
    shop = Workshop(plan, store, sets, tell)
    checkpoints, pretraining = _checkpoints(shop, plan, sets)
    results: dict[str, Any] = {"plan": asdict(plan), "pretraining": pretraining, "seeds": []}
    for seed in range(plan.seeds):
        results["seeds"].append(_one_seed(shop, plan, checkpoints, seed))
        store.write("results.json", json.dumps(results, indent=2) + "\n")
        store.write("tables.md", markdown(results))
        draw_figures(results, shop, checkpoints)
    return results


def _checkpoints(shop: Workshop, plan: Plan, sets: Sets) -> tuple[dict[str, Weights], dict[str, Any]]:
    """Pre-trained weights by name, and what the pre-trainings came to."""
    held = {
        "other": shop.piece("pretraining-other", lambda: pretrain(plan, sets.other)),
        "same": shop.piece("pretraining-same", lambda: pretrain(plan, sets.same)),
        "supervised": shop.piece("pretraining-supervised", lambda: supervise(plan, sets)),
    }
    told = {name: dict(zip(("first", "last"), ends(piece["losses"]), strict=True)) for name, piece in held.items()}
    for name in ("other", "same"):
        told[name]["unrestored"] = ends(held[name]["unrestored"])[1]
        told[name]["early_steps"] = max(1, plan.pretrain_steps // EARLY)
    early = {f"{name}, early": held[name]["early"] for name in ("other", "same")}
    weights: dict[str, Weights] = {"scratch": None, **early, **{name: piece["network"] for name, piece in held.items()}}
    return {name: weights[name] for name in CHECKPOINTS}, told


def _one_seed(shop: Workshop, plan: Plan, checkpoints: dict[str, Weights], seed: int) -> dict[str, Any]:
    """All that the tables and figures say of one seed; the thesis' three starts first."""
    full = {name: shop.best_full(name, checkpoints[name], seed) for name in STARTS}
    norms = {name: shop.best_norms(name, checkpoints[name], seed) for name in STARTS}

    def tuned(name: str, phases: Phases) -> dict[str, Any]:
        if phases == Phases():
            return full[name]
        return shop.tuned(name, checkpoints[name], seed, lr=full[name]["lr"], phases=phases)

    phases = {way.name: tuned("other", way) for way in phase_grid(plan.weights[0])}
    penalty = {name: {f"{w:g}": tuned(name, Phases(weight=w)) for w in (0.0, *plan.weights)} for name in STARTS}
    clips = {
        kind: {name: shop.clipped(kind, name, seed, found[name]["piece"]) for name in STARTS}
        for kind, found in (("full", full), ("norms", norms))
    }
    for name in CHECKPOINTS[len(STARTS) :]:
        full[name] = shop.best_full(name, checkpoints[name], seed)
        norms[name] = shop.best_norms(name, checkpoints[name], seed)
    ranking = shop.ranked(checkpoints, seed)
    return {"full": full, "norms": norms, "phases": phases, "penalty": penalty, "clips": clips, "ranking": ranking}


def main(
    data: Annotated[Path, typer.Option(envvar="LAYERTUNE_DATA", help="Folder that holds Task04_Hippocampus.")],
    out: Annotated[Path, typer.Option(help="Folder for what is finished and the results.")],
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
) -> None:
    """Run the study, or go on with it."""
    torch.set_num_threads(threads)
    console = Console(stderr=True)
    try:
        results = run_study(Plan(), data, out, tell=console.print)
    except LayertuneError as error:
        console.print(f"hippocampus_alchemy: {error}")
        raise typer.Exit(2) from error
    typer.echo(markdown(results))


if __name__ == "__main__":
    typer.run(main)
