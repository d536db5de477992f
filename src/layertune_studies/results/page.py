"""The demo's report: one page that opens offline, and the learned profile."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from torch import Tensor

from layertune import LayerMap, LRProfile
from layertune.plots.network import plot_network
from layertune.plots.rates import plot_lrs_over_depth, plot_lrs_over_time
from layertune_studies.data.brains import Cohort, tissues
from layertune_studies.demo_methods import HYPER_LR, LRS, RULE, START_LR
from layertune_studies.demo_options import DemoOptions
from layertune_studies.demo_result import HEADINGS, Row, Trial
from layertune_studies.demo_store import Store
from layertune_studies.results.page_figures import examples_png, learning_curves, svg

__all__ = ["write_report"]


def write_report(
    options: DemoOptions,
    store: Store,
    cohort: Cohort,
    layers: LayerMap,
    rows: Sequence[Row],
    trials: Mapping[str, Sequence[Trial]],
    before: Tensor,
) -> tuple[Path, Path]:
    """Write ``report.html`` and ``profile.json``.

    Args:
        options: of the run.
        store: its folder.
        cohort: its cases.
        layers: of the network.
        rows: of the table.
        trials: by method's title, one a seed.
        before: label map of the first test subject by the pre-trained network.

    Returns:
        Paths of the page and of the profile.
    """
    profiles = _profiles(trials)
    profile = next(iter(profiles.values()))
    path = store.folder / "profile.json"
    profile.save(path)
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = page.from_string(files("layertune_studies").joinpath("demo_report.html").read_text(encoding="utf-8"))
    first = cohort.test[0]
    examples = {"Pre-trained": before, **{title: runs[0].outcome.example for title, runs in trials.items()}}
    text = template.render(
        options=options,
        tissues=tissues(options.data),
        counts={"validation": len(cohort.validation), "test": len(cohort.test)},
        headings=HEADINGS,
        rows=[row.cells() for row in rows],
        seeds=_by_seed(trials),
        method={"lrs": LRS, "rule": RULE, "start": START_LR, "hyper_lr": HYPER_LR},
        figures=_figures(layers, profiles, trials),
        profiles=list(profiles),
        examples=examples_png(first.image, first.label, examples),
    )
    return store.write("report.html", text), path


def _profiles(trials: Mapping[str, Sequence[Trial]]) -> dict[str, LRProfile]:
    """By method and seed, where rates were learned."""
    return {
        f"{title}, seed {seed}": trial.piece.profile
        for title, runs in trials.items()
        for seed, trial in enumerate(runs)
        if trial.piece.profile
    }


def _figures(
    layers: LayerMap, profiles: Mapping[str, LRProfile], trials: Mapping[str, Sequence[Trial]]
) -> dict[str, str]:
    """SVG elements by what they show."""
    first = next(iter(profiles.values()))
    losses = {title: [trial.piece.log.losses for trial in runs] for title, runs in trials.items()}
    curves = {title: [trial.piece.log.curve for trial in runs] for title, runs in trials.items()}
    axes = {
        "curves": learning_curves(losses, curves),
        "network": plot_network(layers, first),
        "depth": plot_lrs_over_depth(profiles),
        "time": plot_lrs_over_time(first),
    }
    return {name: svg(drawn) for name, drawn in axes.items()}


def _by_seed(trials: Mapping[str, Sequence[Trial]]) -> list[dict[str, Any]]:
    """What each method chose and reached on each seed."""
    return [
        {"method": title, "seed": seed, "setting": trial.setting, "validation": trial.piece.validation, "test": score}
        for title, runs in trials.items()
        for seed, trial in enumerate(runs)
        for score in [trial.outcome.scores.dice]
    ]
