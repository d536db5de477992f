"""Fine-tuning on real cases with MONAI's U-Net: the hippocampus study of the documentation's page on MONAI.

    python -m layertune_studies.hippocampus_monai --data DIR --out DIR

MONAI's U-Net is pre-trained on 100 cases of the Decathlon's Task04_Hippocampus with inverted contrast, and fine-tuned
on 8 others: with one rate, with frozen layers, with learned rates. Settings are chosen on 20 validation cases; 60 test
cases are reported on. An interrupted study goes on where it was.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from monai.losses import DiceCELoss
from rich.console import Console
from torch.optim import SGD

from layertune import LRProfile, MetaLR, map_layers, param_groups
from layertune.plots.network import plot_network
from layertune.plots.rates import plot_lrs_over_depth
from layertune_studies.data.brains import make_cohort
from layertune_studies.data.case import batch_of
from layertune_studies.demo_methods import START_LR
from layertune_studies.demo_options import DemoOptions
from layertune_studies.demo_store import Store
from layertune_studies.demo_train import make_network
from layertune_studies.demo_work import MOMENTUM, Piece, Workshop
from layertune_studies.hippocampus_methods import STARTS, Trial, Way, best, learned_ways, run_way, static_ways
from layertune_studies.training.loop import Run, Task, train_step

__all__ = ["STUDY", "run_study", "step_ratios"]

STUDY: dict[str, Any] = {
    "data": "Task04_Hippocampus",
    "size": (40, 56, 40),
    "source": 100,
    "shots": 8,
    "held_out": 20,
    "pretrain_steps": 200,
    "steps": 100,
    "batch": 2,
    "validate_every": 50,
    "checkpoint_every": 50,
}
"""Options of the demo with which the study is run."""


def run_study(options: DemoOptions, *, tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run the study, or go on with it; write ``results.json``, the learned profiles and the figures.

    Args:
        options: ``STUDY`` with the folders; ``options.out`` is made, or gone on with.
        tell: told each finished piece.

    Returns:
        What ``results.json`` holds.

    Raises:
        DataError: the cases are not there, or too few.
        FolderError: the folder holds another run or other things.
    """
    torch.set_num_threads(options.threads)
    drawn = ("size", "source", "shots", "seeds", "held_out", "seed")
    cohort = make_cohort(options.data, root=options.root, **{name: getattr(options, name) for name in drawn})
    store = Store(options.out, {"study": "hippocampus_monai", **options.identity()})
    shops = {depth: Workshop(options, store, cohort, lambda *_: None) for depth in ("I1", "I2")}
    shops["I2"].layers = map_layers(make_network(0), torch.empty(2, 1, *options.size), depth="I2")
    start = shops["I1"].pretrained()
    tell("pre-trained")
    before = shops["I1"].tested("pretraining", start)
    trials = [_seed_trials(shops, start, seed, tell) for seed in range(options.seeds)]
    ratios = step_ratios(shops["I1"], start)
    results = {
        "options": options.identity(),
        "pretrained": asdict(before.scores),
        "rows": _rows([seed["chosen"] for seed in trials]),
        "by_start": _rows([seed["by_start"] for seed in trials]),
        "step": ratios,
    }
    store.write("results.json", json.dumps(results, indent=2) + "\n")
    _draw(store.folder, shops, [seed["chosen"] for seed in trials])
    return results


def _seed_trials(
    shops: dict[str, Workshop], start: Piece, seed: int, tell: Callable[[str], None]
) -> dict[str, dict[str, Trial]]:
    """Everything on one seed: what each method chose, and each method from each starting rate."""
    chosen: dict[str, Trial] = {}
    by_start: dict[str, Trial] = {}
    flat_lr = 0.0

    def run(way: Way) -> list[Trial]:
        trials = run_way(shops[way.depth], start, way, seed, flat_lr)
        tell(f"seed {seed}: {way.method.title}")
        return trials

    for way in static_ways():
        trials = run(way)
        chosen[way.method.title] = best(trials)
        if not flat_lr:
            flat_lr = chosen[way.method.title].lr
            by_start |= {f"One rate, {trial.lr:g}": trial for trial in trials if trial.lr in STARTS}
    for lr in STARTS:
        for way in learned_ways(lr):
            (trial,) = run(way)
            by_start[f"{way.method.title}, {lr:g}"] = trial
    ending = f", {START_LR:g}"
    chosen |= {key.removesuffix(ending): trial for key, trial in by_start.items() if key.endswith(ending)}
    return {"chosen": chosen, "by_start": by_start}


def _rows(seeds: Sequence[dict[str, Trial]]) -> list[dict[str, Any]]:
    """One row a method, with the scores of each seed."""
    return [
        {
            "method": title,
            "settings": [seed[title].setting for seed in seeds],
            "validation": [seed[title].piece.validation for seed in seeds],
            **{name: [getattr(seed[title].scores, name) for seed in seeds] for name in ("dice", "ppv", "sensitivity")},
        }
        for title in seeds[0]
    ]


def step_ratios(workshop: Workshop, start: Piece, *, laps: int = 15) -> dict[str, Any]:
    """Time per iteration, in one process and in turns: in each lap every contender takes one step.

    Args:
        workshop: with the cases of seed 0.
        start: the pre-trained network.
        laps: after two that are not counted.

    Returns:
        ``plain_ms``, the median plain step, and the median ratio of each contender to the plain step of its lap.
    """
    runs = {"plain": _contender(workshop, start), "exact": _contender(workshop, start, streaming=False)}
    runs |= {"streaming": _contender(workshop, start, streaming=True)}
    cases, loss_of = workshop.cohort.train[0], DiceCELoss(to_onehot_y=True, softmax=True)
    task = Task(
        batch=lambda step: batch_of(cases, workshop.options.batch, key=(step, 0)),
        meta_batch=lambda step: batch_of(cases, workshop.options.batch, key=(step, 1)),
        validation=(),
    )
    for step in range(laps + 2):
        for run in runs.values():
            train_step(run, task, loss_of, step)
    seconds = {name: run.log.seconds[2:] for name, run in runs.items()}
    ratio = {
        f"{name}_ratio": median(one / other for one, other in zip(times, seconds["plain"], strict=True))
        for name, times in seconds.items()
        if name != "plain"
    }
    return {"plain_ms": 1000 * median(seconds["plain"]), **ratio, "laps": laps}


def _contender(workshop: Workshop, start: Piece, *, streaming: bool | None = None) -> Run:
    network = make_network(0)
    network.load_state_dict(start.network)
    run = Run(network, SGD(param_groups(network, workshop.layers, lr=1e-2), lr=1e-2, momentum=MOMENTUM, nesterov=True))
    if streaming is not None:
        run.metalr = MetaLR(run.optimizer, hyper_lr=0.0, streaming=streaming)
    return run


def _draw(folder: Path, shops: dict[str, Workshop], seeds: Sequence[dict[str, Trial]]) -> None:
    """The learned rates on the U under both readings, and over depth."""
    titles = ("MetaLR, exact", "MetaLR, streaming")
    profiles = {
        f"{title.removeprefix('MetaLR, ')}, seed {number}": profile
        for title in titles
        for number, seed in enumerate(seeds)
        if (profile := seed[title].piece.profile)
    }
    for name, profile in profiles.items():
        profile.save(folder / f"profile-{name.replace(', ', '-').replace(' ', '')}.json")
    first = next(iter(profiles.values()))
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    for axes, depth in zip(figure.subplots(1, 2), shops, strict=True):
        plot_network(shops[depth].layers, first, ax=axes)
        axes.set_title(depth, fontsize=9)
    figure.savefig(folder / "hippocampus_monai_network.png", dpi=150)
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    for axes, (depth, shop) in zip(figure.subplots(1, 2, sharey=True), shops.items(), strict=True):
        depths = {layer.name: layer.depth for layer in shop.layers}
        read = {name: _with_depths(profile, depths) for name, profile in profiles.items()}
        plot_lrs_over_depth(read, ax=axes)
        axes.set_title(depth, fontsize=9)
    figure.savefig(folder / "hippocampus_monai_depth.png", dpi=150)


def _with_depths(profile: LRProfile, depths: dict[str, int]) -> LRProfile:
    return replace(profile, depths=tuple(depths[name] for name in profile.layers))


def main(
    data: Annotated[Path, typer.Option(help="Folder that holds Task04_Hippocampus.")],
    out: Annotated[Path, typer.Option(help="Folder for what is finished and the results.")],
) -> None:
    """Run the study, or go on with it."""
    console = Console(stderr=True)
    results = run_study(DemoOptions(root=data, out=out, **STUDY), tell=console.print)
    for row in (*results["rows"], *results["by_start"]):
        scores = "  ".join(f"{name} {mean(row[name]):.3f}" for name in ("dice", "ppv", "sensitivity"))
        console.print(f"{row['method']:<40} {scores}  {', '.join(row['settings'])}")


if __name__ == "__main__":
    typer.run(main)
