"""`layertune demo`: fine-tune a small U-Net to another contrast, with flat rates and with learned ones."""

import time
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from layertune_studies.data.brains import Cohort, make_cohort
from layertune_studies.demo_methods import Method, methods
from layertune_studies.demo_options import DemoOptions
from layertune_studies.demo_result import DemoResult, Row, Trial, make_row
from layertune_studies.demo_store import Store
from layertune_studies.demo_work import Piece, Workshop
from layertune_studies.results.page import write_report

__all__ = ["DemoOptions", "DemoResult", "run_demo"]


def run_demo(options: DemoOptions, *, console: Console | None = None) -> DemoResult:
    """Run the demo, or go on with it where it was interrupted.

    A network is pre-trained on one contrast and fine-tuned to another with few labelled cases, in five ways. Settings
    are chosen on validation subjects; the table is of test subjects.

    Args:
        options: what to run; ``options.out`` is made, or gone on with.
        console: for progress; by default the standard error stream.

    Returns:
        The table's rows and where the report lies.

    Raises:
        DataError: images that were asked for are not there.
        FolderError: the folder holds another run or other things.
        SystemExit: with code 130, interrupted by Ctrl-C.
    """
    console = console or Console(stderr=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        return _run(options, console)
    except KeyboardInterrupt:
        line = f"Interrupted. What is finished lies in {options.out}; the same command goes on from there."
        console.print(line, soft_wrap=True)
        raise SystemExit(130) from None
    finally:
        torch.set_num_threads(threads)


def _run(options: DemoOptions, console: Console) -> DemoResult:
    start = time.perf_counter()
    with console.status(f"Making subjects from {options.data}"):
        cohort = _cohort(options)
    store = Store(options.out, options.identity())  # not before there is something to keep
    with _progress(console) as progress:
        meter = _Meter(progress)
        workshop = Workshop(options, store, cohort, meter)
        ways = methods(workshop.layers)
        trainings = {candidate.name for way in ways for candidate in way.candidates}
        meter.expect(options.pretrain_steps + options.seeds * options.steps * len(trainings))
        pretrained = workshop.pretrained()
        before = workshop.tested("pretraining", pretrained)
        trials = _compare(workshop, pretrained, ways)
    rows = (
        Row("pretrained", "Pre-trained, not tuned", (before.scores,)),
        *(make_row(way, trials[way.title]) for way in ways),
    )
    report, profile = write_report(options, store, cohort, workshop.layers, rows, trials, before.example)
    return DemoResult(options, rows, report, profile, time.perf_counter() - start)


def _cohort(options: DemoOptions) -> Cohort:
    return make_cohort(
        options.data,
        root=options.root,
        size=options.size,
        source=options.source,
        shots=options.shots,
        seeds=options.seeds,
        held_out=options.held_out,
        seed=options.seed,
    )


def _compare(workshop: Workshop, pretrained: Piece, ways: Sequence[Method]) -> dict[str, list[Trial]]:
    """Every method on every seed; the first method's rate serves those that choose none of their own."""
    trials: dict[str, list[Trial]] = {way.title: [] for way in ways}
    for seed in range(workshop.options.seeds):
        flat_lr = 0.0
        for way in ways:
            trial = _trial(workshop, pretrained, way, seed, flat_lr)
            flat_lr = flat_lr or trial.lr
            trials[way.title].append(trial)
    return trials


def _trial(workshop: Workshop, pretrained: Piece, way: Method, seed: int, flat_lr: float) -> Trial:
    """All settings of a method; the one with the best validation Dice goes to the test subjects."""
    lrs = [candidate.lr or flat_lr for candidate in way.candidates]
    pieces = [
        workshop.tuned(pretrained, way, candidate, lr=lr, seed=seed)
        for candidate, lr in zip(way.candidates, lrs, strict=True)
    ]
    best = max(range(len(pieces)), key=lambda index: pieces[index].validation)
    return Trial(
        setting=way.candidates[best].label,
        lr=lrs[best],
        piece=pieces[best],
        outcome=workshop.tested(f"{way.key}-seed{seed}", pieces[best]),
        passes=way.passes * workshop.options.steps * len(pieces),
    )


class _Meter:
    """Adds up the steps of all pieces of work for one progress bar."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.bar = progress.add_task("", total=None)
        self.done: dict[str, int] = {}

    def expect(self, steps: int) -> None:
        self.progress.update(self.bar, total=steps)

    def __call__(self, name: str, done: int) -> None:
        self.done[name] = done
        self.progress.update(self.bar, completed=sum(self.done.values()), description=name)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
