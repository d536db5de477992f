"""Fine-tuning on real cases with nnU-Net: the hippocampus study of the documentation's page on nnU-Net.

    python -m layertune_studies.hippocampus_nnunet --data DIR --out DIR

nnU-Net's trainer with AdamW pre-trains on 100 cases of the Decathlon's Task04_Hippocampus with inverted contrast. The
same trainer, alone and with layertune's mixins before it, fine-tunes on 8 others; 32 more are predicted and evaluated.
Nothing is chosen on them. An interrupted study goes on with the piece of work that it was at.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from rich.console import Console

from layertune_nnunet.tools.trainer_path import VARIABLE
from layertune_studies.demo_store import Store
from layertune_studies.hippocampus_nnunet_data import LABELS, PLANS, SOURCE, TARGET, prepare, settings
from layertune_studies.hippocampus_nnunet_figure import draw
from layertune_studies.training.nnunet import Training, dice_of, predict, train

__all__ = ["METHODS", "Options", "run_study"]

PRETRAINER = "nnUNetTrainerAdam1en3"
"""nnU-Net's own; its default, SGD with momentum 0.99, needs more iterations than these to find the foreground."""
METHODS = {
    "all layers": PRETRAINER,
    "all layers, 3e-3": "nnUNetTrainerAdam3en3",
    "all layers, 1e-2": "nnUNetTrainerAdam1en2",
    "MetaLR, exact": f"{PRETRAINER}MetaLR",
    "MetaLR, streaming": f"{PRETRAINER}MetaLRStreaming",
    "bi-directional (3, 6)": f"{PRETRAINER}BiDirectional",
    "from scratch": PRETRAINER,
}
"""Title -> trainer."""
TRAINERS = Path(__file__).with_name("nnunet_trainers")
SCRATCH = "from scratch"
PRETRAINED = "pre-trained, not tuned"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the study depends on.

    Attributes:
        source: cases to pre-train on.
        shots: cases to fine-tune on.
        test: cases to evaluate on.
        narrower: what nnU-Net's numbers of features are divided by.
        iterations: of an epoch.
        pretrain_epochs: of the pre-training.
        epochs: of a fine-tuning.
        seeds: how often each method is repeated.
        seed: which cases are what, and what the pre-training starts from.
    """

    source: int = 100
    shots: int = 8
    test: int = 32
    narrower: int = 4
    iterations: int = 50
    pretrain_epochs: int = 20
    epochs: int = 6
    seeds: int = 2
    seed: int = 0


def run_study(
    data: Path, out: Path, options: Options, *, tell: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Run the study, or go on with it; write ``results.json`` and the figures.

    Args:
        data: folder that holds ``Task04_Hippocampus``.
        out: folder for nnU-Net's folders, what is finished, and the results.
        options: of the study.
        tell: told each finished piece.

    Returns:
        What ``results.json`` holds: a row a method, with a list over seeds of each number.

    Raises:
        DataError: the cases are not there, or too few.
        FolderError: the folder holds another run or other things.
        subprocess.CalledProcessError: a command of nnU-Net failed; ``log.txt`` in the folder says why.
    """
    torch.set_num_threads(1)
    store = Store(out, {"study": "hippocampus_nnunet", **asdict(options)})

    def once(name: str, work: Callable[[], Any]) -> Any:
        """Do a piece of work, or take what it gave the last time."""
        if (piece := store.load(name)) is None:
            piece = work()
            store.save(name, piece)
        tell(f"{name}: {piece}")
        return piece

    once("prepared", partial(_prepare, data, out, options))
    once("pre-training", partial(_pretrain, out, options))
    rows: dict[str, list[Mapping[str, Any]]] = {
        PRETRAINED: [once(PRETRAINED, partial(_test, out, "results", SOURCE, PRETRAINER))]
    }
    for title, trainer in METHODS.items():
        for seed in range(options.seeds):
            name = f"{title}, seed {seed}"
            took = once(f"{name}, training", partial(_tune, out, options, title, seed))
            dice = once(name, partial(_test, out, _run_name(title, seed), TARGET, trainer))
            rows.setdefault(title, []).append({**took, **dice})
            # Written each time, so that a study which is stopped has results as well.
            store.write("results.json", json.dumps(_results(options, rows), indent=2) + "\n")
    folders = {
        f"{title.removeprefix('MetaLR, ')}, seed {seed}": _fold(out, _run_name(title, seed), TARGET, trainer)
        for title, trainer in METHODS.items()
        for seed in range(options.seeds)
        if title.startswith("MetaLR")
    }
    draw(out, folders)
    return _results(options, rows)


def _results(options: Options, rows: Mapping[str, list[Mapping[str, Any]]]) -> dict[str, Any]:
    return {
        "options": asdict(options),
        "rows": [
            {"method": title, **{key: [trial[key] for trial in trials] for key in trials[0]}}
            for title, trials in rows.items()
        ],
    }


def _prepare(data: Path, out: Path, options: Options) -> list[str]:
    numbers = {name: getattr(options, name) for name in ("source", "shots", "test", "narrower", "seed")}
    prepare(data, out, **numbers)
    return [SOURCE, TARGET]


def _pretrain(out: Path, options: Options) -> dict[str, float]:
    return _train(out, options, "results", SOURCE, PRETRAINER, options.pretrain_epochs, options.seed)


def _tune(out: Path, options: Options, title: str, seed: int) -> dict[str, float]:
    start = None if title == SCRATCH else _fold(out, "results", SOURCE, PRETRAINER) / "checkpoint_final.pth"
    return _train(out, options, _run_name(title, seed), TARGET, METHODS[title], options.epochs, 1 + seed, start)


def _train(
    out: Path,
    options: Options,
    results: str,
    dataset: str,
    trainer: str,
    epochs: int,
    seed: int,
    pretrained: Path | None = None,
) -> dict[str, float]:
    training = Training(
        dataset=dataset,
        trainer=trainer,
        plans=PLANS,
        pretrained=pretrained,
        epochs=epochs,
        iterations=options.iterations,
        seed=seed,
    )
    with _nnunet(out, results):
        return {"cpu_seconds": train(training)}


def _test(out: Path, results: str, dataset: str, trainer: str) -> dict[str, float]:
    """Dice of the test cases by class."""
    found = out / "predictions" / results
    with _nnunet(out, results):
        predict(_fold(out, results, dataset, trainer).parent, out / "raw" / TARGET / "imagesTs", found)
    classes = {name.lower(): number for name, number in LABELS.items() if number}
    return dice_of(found, out / "raw" / TARGET / "labelsTs", classes)


@contextmanager
def _nnunet(out: Path, results: str) -> Iterator[None]:
    """Let nnU-Net work in ``out``, with layertune's trainers, and write what it prints to ``log.txt``."""
    variables = settings(out, results) | {"nnUNet_n_proc_DA": "0", VARIABLE: str(TRAINERS)}
    with patch.dict(os.environ, variables), (out / "log.txt").open("a", encoding="utf-8") as log, redirect_stdout(log):
        yield


def _run_name(title: str, seed: int) -> str:
    return f"results-{title.replace(',', '').replace(' ', '-')}-{seed}"


def _fold(out: Path, results: str, dataset: str, trainer: str) -> Path:
    """Where nnU-Net keeps a training."""
    return out / results / dataset / f"{trainer}__{PLANS}__3d_fullres" / "fold_all"


def main(
    data: Annotated[Path, typer.Option(help="Folder that holds Task04_Hippocampus.")],
    out: Annotated[Path, typer.Option(help="Folder for what is finished and the results.")],
) -> None:
    """Run the study, or go on with it."""
    console = Console(stderr=True)
    results = run_study(data, out, Options(), tell=console.print)
    for row in results["rows"]:
        numbers = "  ".join(f"{key} {mean(row[key]):.3f}" for key in row if key != "method")
        console.print(f"{row['method']:<24} {numbers}")


if __name__ == "__main__":
    typer.run(main)
