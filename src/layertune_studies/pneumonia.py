"""Fine-tuning on chest X-rays with Lightning: ``python -m layertune_studies.pneumonia --data DIR --out DIR``."""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from layertune import LayertuneError, map_layers
from layertune.cli.terminal import Json, print_json, print_table
from layertune_studies.data.digits import SIDE
from layertune_studies.demo_store import Store
from layertune_studies.pneumonia_data import few, xrays
from layertune_studies.pneumonia_methods import METHODS, Chosen, Setting, choose, tuned_rate
from layertune_studies.pneumonia_training import NETWORKS, Network, XRays, pretrain, tune
from layertune_studies.training.lightning import quiet

__all__ = ["Plan", "app", "run"]

METRICS = ("accuracy", "sensitivity", "specificity")
app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the results depend on.

    Attributes:
        networks: names of what is fine-tuned.
        seeds: how often, each time with other labelled images, another order and another new head.
        images: labelled X-rays.
        steps: of each fine-tuning.
        batch: images in a batch.
    """

    networks: tuple[str, ...] = tuple(NETWORKS)
    seeds: int = 3
    images: int = 200
    steps: int = 100
    batch: int = 16


def run(plan: Plan, data: Path, out: Path, told: Callable[[str], object] = lambda _: None) -> dict[str, Any]:
    """Do what is not done yet, and gather the results.

    Args:
        plan: what to do.
        data: folder that holds ``pneumoniamnist.npz``.
        out: folder for results; an interrupted run goes on from it.
        told: hears of each training that starts.

    Returns:
        For each network ``title``, ``pretrained`` (accuracy on its own task) and ``rows``, one for each method.

    Raises:
        DataError: the X-rays are not there.
        FolderError: the folder holds another run or other things.
    """
    splits = {split: xrays(split, data) for split in ("train", "val", "test")}
    # Another network's trainings may lie in the same folder.
    store = Store(out, {name: value for name, value in vars(plan).items() if name != "networks"})

    def piece(name: str, make: Callable[[], Any]) -> Any:
        held = store.load(name)
        if held is None:
            told(name)
            held = make()
            store.save(name, held)
        return held

    def of_network(key: str) -> dict[str, Any]:
        spec = NETWORKS[key]
        start = piece(f"{key}-pretraining", lambda: pretrain(spec))
        d = map_layers(spec.build(2), torch.empty(2, 1, SIDE, SIDE)).d
        chosen = []
        for seed in range(plan.seeds):

            def train(setting: Setting, seed: int = seed) -> Any:
                return piece(
                    f"{key}-{setting.name}-seed{seed}", lambda: _tuned(spec, start, plan, splits, setting, seed)
                )

            tuned = tuned_rate(spec.lrs, train)
            chosen.append([choose(method, spec.lrs, tuned, d, train) for method in METHODS])
        rows = [
            _row(method.title, plan, found) for method, found in zip(METHODS, zip(*chosen, strict=True), strict=True)
        ]
        return {"title": spec.title, "pretrained": start["accuracy"], "rows": rows}

    results = {key: of_network(key) for key in plan.networks}
    store.write("results.json", json.dumps(results, indent=2) + "\n")
    return results


def _tuned(
    spec: Network, start: dict[str, Any], plan: Plan, splits: dict[str, Any], setting: Setting, seed: int
) -> dict[str, Any]:
    torch.manual_seed(seed)
    network = spec.build(2)
    if not setting.scratch:
        # The head is new: the digits' classes are of no use here.
        fitting = {
            name: value for name, value in start["network"].items() if network.state_dict()[name].shape == value.shape
        }
        network.load_state_dict(fitting, strict=False)
    callbacks = setting.callbacks()
    found = tune(
        XRays(network, spec.optimizer, setting.lr),
        callbacks,
        train=few(splits["train"], plan.images, seed=seed),
        validation=splits["val"],
        test=splits["test"],
        steps=plan.steps,
        batch=plan.batch,
        seed=seed,
    )
    return {**found, "lrs": dict(getattr(callbacks[0], "lrs", {})) if callbacks else {}}


def _row(title: str, plan: Plan, found: tuple[Chosen, ...]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, of the test images."""
    scores = {name: [one.piece["test"][name] for one in found] for name in METRICS}
    return {
        "method": title,
        "settings": [one.setting.name for one in found],
        **{name: [statistics.mean(values), statistics.pstdev(values)] for name, values in scores.items()},
        "seconds": statistics.mean(one.piece["seconds"] for one in found),
        "passes": round(statistics.mean(one.passes for one in found) * plan.steps),
        "lrs": [one.piece["lrs"] for one in found],
    }


@app.command()
def main(
    data: Annotated[Path, typer.Option(envvar="LAYERTUNE_DATA", help="Folder that holds pneumoniamnist.npz.")],
    out: Annotated[Path, typer.Option(help="Folder for results; an interrupted run goes on from it.")],
    network: Annotated[list[str] | None, typer.Option(help="resnet18, vit. [both]")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How often fine-tuning is repeated.")] = Plan.seeds,
    images: Annotated[int, typer.Option(min=1, help="Labelled X-rays.")] = Plan.images,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each fine-tuning.")] = Plan.steps,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    as_json: Json = False,
) -> None:
    """Fine-tune a ResNet-18 and a small ViT on few chest X-rays: one rate, frozen layers, learned rates."""
    torch.set_num_threads(threads)
    for name in network or ():
        if name not in NETWORKS:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(NETWORKS)}", param_hint="--network")
    plan = Plan(networks=tuple(network or NETWORKS), seeds=seeds, images=images, steps=steps)
    try:
        with quiet():
            results = run(plan, data, out, lambda name: typer.echo(name, err=True))
    except LayertuneError as error:
        typer.echo(f"pneumonia: {error}", err=True)
        raise typer.Exit(2) from error
    if as_json:
        print_json(results)
        return
    for found in results.values():
        heading = f"{found['title']}, pre-trained to an accuracy of {found['pretrained']:.3f} on digits"
        rows = [
            [
                row["method"],
                *(" ± ".join(f"{100 * value:.1f}" for value in row[name]) for name in METRICS),
                f"{row['seconds']:.1f}",
                str(row["passes"]),
            ]
            for row in found["rows"]
        ]
        print_table(heading, ["Method", *METRICS, "CPU s", "passes"], rows, left=1)


if __name__ == "__main__":
    app()
