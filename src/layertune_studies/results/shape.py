"""What the shape of learned rates over depth comes from: the lengths of gradients, or their alignment.

    python -m layertune_studies.results.shape STUDY.yaml --root DIR --labelled 16 --lr 0.01

The meta gradient of a layer's rate is a product, h_j = -<g_j, u_j> = -|g_j| |u_j| cos(g_j, u_j). Rules that follow h
(eq. 3 of MetaLR, and its proportional form) learn from both factors, those that follow the cosine from the second one
alone, as far as layers differ. This measures both factors in a training at one rate, and sets beside them what the
study's methods of kind metalr learned from the same start.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from torch import Tensor

from layertune import AllLayers, LayertuneError
from layertune.plots.style import COLUMN, FONT, LINE_COLORS, SMALL_FONT, short_names
from layertune_studies.config.methods import Flat, MetaLRMethod
from layertune_studies.config.study import load_study
from layertune_studies.engine.context import StudyContext
from layertune_studies.engine.store import StudyStore
from layertune_studies.engine.trial import Trial, run_trial, training_of
from layertune_studies.errors import StudyError
from layertune_studies.results.formats import markdown
from layertune_studies.training.budget import steps_of
from layertune_studies.training.loop import Training
from layertune_studies.training.settings import Setting

__all__ = ["Shape", "app", "correlations", "draw", "measure", "shape_of", "table"]


@dataclass(frozen=True)
class Shape:
    """The factors of the meta gradient and the learned rates of each layer, from the first to the last.

    Attributes:
        layers: Names of the layers.
        lengths: |g_j| |u_j|, the geometric mean over steps and seeds, divided by the geometric mean over layers.
        cosines: The mean of cos(g_j, u_j) over steps and seeds.
        learned: By method, the learned rate divided by the rate at the start, the geometric mean over seeds.
    """

    layers: tuple[str, ...]
    lengths: list[float]
    cosines: list[float]
    learned: dict[str, list[float]]


def shape_of(context: StudyContext, *, labelled: int, lr: float, seeds: int) -> Shape:
    """Measure the two factors of the meta gradient, and what is learned from them.

    Args:
        context: The study. Its test cases are not used.
        labelled: The number of labelled cases.
        lr: Learning rate at the start of each training; the measurement keeps it throughout.
        seeds: The number of seeds, which count from 0.

    Raises:
        StudyError: The study has no method of kind metalr with a rule other than ``"free"``, a layer has no gradient,
            or the training diverged.
        DataError: The cases are not there, or are too few.
    """
    study = context.study.model_copy(update={"report": "validation"})
    methods = [method for method in study.methods if isinstance(method, MetaLRMethod) and method.rule != "free"]
    if not methods:
        raise StudyError(
            f"{study.name} has no method that learns a rate for each layer; add one of kind metalr with a rule other "
            "than free"
        )
    names = tuple(layer.name for layer in context.layers)
    measurements: list[tuple[np.ndarray, np.ndarray]] = []
    learned: dict[str, list[list[float]]] = {method.name: [] for method in methods}
    for seed in range(seeds):
        flat = Trial(Flat(kind="flat"), Setting("all"), lr, labelled, seed)
        measurements.append(measure(training_of(study, flat, context.root, context.weights)))
        for method in methods:
            trial = Trial(method, Setting("all"), lr, labelled, seed)
            result = run_trial(study, trial, context.root, context.weights)
            if result["profile"] is None:
                raise StudyError(f"{method.name} learned nothing in {result['steps']} step; give the study more")
            factors = dict(zip(result["profile"]["layers"], result["profile"]["scales"][-1], strict=True))
            learned[method.name].append([factors[name] for name in names])
    lengths = _geometric([lengths for lengths, _ in measurements])
    if not np.isfinite(np.log(lengths)).all():
        raise StudyError(f"a layer has no gradient, or the training diverged at {lr:g}; take another rate")
    return Shape(
        names,
        (lengths / np.exp(np.log(lengths).mean())).tolist(),
        np.mean([cosines for _, cosines in measurements], axis=0).tolist(),
        {name: _geometric(rows).tolist() for name, rows in learned.items()},
    )


def measure(training: Training) -> tuple[np.ndarray, np.ndarray]:
    """Measure |g_j| |u_j| and cos(g_j, u_j) of each layer in a training at one rate; g is the next batch's gradient.

    Args:
        training: A training at its start. It is trained for the whole budget of its study.

    Returns:
        The geometric mean of the lengths over the steps, and the mean of the cosines, one entry a layer.
    """
    optimizer = training.optimizer(AllLayers(), training.lr)
    pairs = list(_pairs(training, optimizer, steps_of(training.study, Flat(kind="flat"))))
    lengths = _geometric([[float(g.norm() * u.norm()) for g, u in layers] for layers in pairs])
    cosines = [[float((g @ u) / (g.norm() * u.norm())) for g, u in layers] for layers in pairs]
    return lengths, np.mean(cosines, axis=0)


def correlations(shape: Shape) -> dict[str, tuple[float, float]]:
    """Return Spearman's rank correlation over layers of each method's learned rates with lengths and with cosines.

    Example:
        >>> shape = Shape(("a", "b", "c"), [3.0, 1.0, 2.0], [0.1, 0.2, 0.3], {"metalr": [9.0, 1.0, 4.0]})
        >>> correlations(shape)
        {'metalr': (1.0, -0.5)}
    """
    from scipy.stats import spearmanr

    return {
        name: (
            round(float(spearmanr(values, shape.lengths).statistic), 6),
            round(float(spearmanr(values, shape.cosines).statistic), 6),
        )
        for name, values in shape.learned.items()
    }


def table(shape: Shape) -> str:
    """Write the numbers of each layer as a Markdown table, with the correlations in the last two lines."""
    lines = [["layer", "lengths", "cosine", *shape.learned]]
    for number, layer in enumerate(shape.layers):
        learned = (f"{values[number]:.2f}" for values in shape.learned.values())
        lines.append([f"`{layer}`", f"{shape.lengths[number]:.2f}", f"{shape.cosines[number]:.2f}", *learned])
    for place, what in enumerate(("lengths", "cosine")):
        ranks = (f"{by_measure[place]:.2f}" for by_measure in correlations(shape).values())
        lines.append([f"rank correlation with {what}", "", "", *ranks])
    return markdown(lines)


def draw(shape: Shape) -> Figure:
    """Draw lengths, cosines and learned rates over the layers, one below the other."""
    figure = Figure(figsize=(COLUMN, 5.0), layout="constrained")
    places = range(1, len(shape.layers) + 1)
    lengths, cosines, learned = figure.subplots(3, 1, sharex=True)
    lengths.semilogy(places, shape.lengths, marker="o", ms=3, color=LINE_COLORS[0])
    lengths.set_ylabel("|g| |u|", fontsize=FONT)
    cosines.plot(places, shape.cosines, marker="o", ms=3, color=LINE_COLORS[0])
    cosines.set_ylabel("cos(g, u)", fontsize=FONT)
    for number, (name, values) in enumerate(shape.learned.items()):
        learned.semilogy(places, values, marker="o", ms=3, color=LINE_COLORS[number % len(LINE_COLORS)], label=name)
    learned.set_ylabel("learned factor", fontsize=FONT)
    learned.legend(fontsize=SMALL_FONT, frameon=False)
    learned.set_xticks(list(places), short_names(shape.layers), rotation=45, ha="right", fontsize=SMALL_FONT)
    return figure


def _pairs(training: Training, optimizer: Any, steps: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield, layer by layer, the gradient of the batch that follows a step, and the step divided by its rate."""
    layers = training.layers.parameters_of(training.network)
    parameters, moved = list(layers.values()), list[Tensor]()
    rate_of = {group["layer"]: group["lr"] for group in optimizer.param_groups}  # the head may have one of its own
    lrs = [rate_of[name] for name in layers]
    for step in range(steps + 1):
        image, label = training.task.batch(step)
        training.network.train()
        optimizer.zero_grad()
        training.loss_of(training.network(image), label).backward()
        if moved:
            yield list(zip(_flat(parameters, gradients=True), moved, strict=True))
        before = _flat(parameters)
        optimizer.step()
        moved = [(old - new) / lr for old, new, lr in zip(before, _flat(parameters), lrs, strict=True)]


def _flat(layers: Sequence[Sequence[Tensor]], *, gradients: bool = False) -> list[Tensor]:
    """Return each layer's parameters, or their gradients, as one vector in double precision."""
    tensors = [[_gradient(p) if gradients else p.detach() for p in parameters] for parameters in layers]
    return [torch.cat([part.flatten().double() for part in parts]) for parts in tensors]


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _geometric(rows: Sequence[Any]) -> Any:
    return np.exp(np.log(np.asarray(rows)).mean(axis=0))


app = typer.Typer()


@app.command()
def main(
    study: Annotated[Path, typer.Argument(help="A study's YAML file.")],
    root: Annotated[Path, typer.Option(envvar="LAYERTUNE_DATA", help="The folder of all data.")],
    labelled: Annotated[int, typer.Option(help="How many labelled cases.")],
    lr: Annotated[float, typer.Option(help="Learning rate at the start.")],
    seeds: Annotated[int, typer.Option(help="How many.", min=1)] = 5,
    out: Annotated[Path, typer.Option(help="Folder for what is pre-trained here, and for the figure.")] = Path("shape"),
) -> None:
    """Measure what the shape of learned rates over depth comes from."""
    try:
        context = StudyContext(load_study(study), root, StudyStore(out))
        shape = shape_of(context, labelled=labelled, lr=lr, seeds=seeds)
    except LayertuneError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error
    out.mkdir(parents=True, exist_ok=True)  # the store makes it only where weights are trained
    draw(shape).savefig(out / "shape.png", dpi=200)
    typer.echo(table(shape), nl=False)


if __name__ == "__main__":
    app()
