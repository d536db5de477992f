"""`layertune demo`: a small study, run by the study engine and shown as a table and on a page."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from layertune_studies.config.demo import DemoOptions, demo_study
from layertune_studies.config.methods import BiDirectionalMethod
from layertune_studies.config.study import Study
from layertune_studies.engine.context import StudyContext
from layertune_studies.engine.run import run_study
from layertune_studies.engine.store import StudyStore
from layertune_studies.errors import FolderError
from layertune_studies.results.page import Page, write_page
from layertune_studies.results.page_figures import learned_profiles
from layertune_studies.results.table import ChosenTrial, chosen_trials
from layertune_studies.training.budget import passes_of_step, steps_of

__all__ = ["DemoOptions", "DemoResult", "DemoRow", "run_demo"]

RECORD = "demo.json"
KEYS = ("pretrained", "all", "start", "last", "bidirectional", "metalr", "streaming")  # of the file's methods, in order
HEADINGS = ("Method", "Dice", "PPV", "Sensitivity", "Setting", "Passes a step", "Passes in all", "Time a step")
# The columns of the terminal's table, with a shorter heading where there is one.
SHORT = {"Method": "", "Dice": "", "PPV": "", "Sensitivity": "", "Passes in all": "Passes", "Time a step": "Step"}
BRAINS_NOTE = (
    "All cases are made from the MNI152 template: deformed, imaged with the tissue contrasts of a T1-weighted (source) "
    "or a T2-weighted scan (target), with bias field, blur and noise. They are no real scans."
)
PROFILE = (
    "The learned rates of the exact method on the first seed are in profile.json; LRProfile.load reads them, and "
    "replay trains with them at one pass a step."
)


@dataclass(frozen=True)
class DemoRow:
    """A method of the demo, over all seeds.

    Attributes:
        key: A short name of the method.
        title: The title of the method.
        scores: The scores of each seed on the test cases.
        settings: The setting that the validation cases chose on each seed.
        passes: Forward and backward passes of a step.
        total_passes: Passes of one seed, with the search for the setting.
        step_ms: Median time of a step in milliseconds, or None where nothing was trained.
    """

    key: str
    title: str
    scores: tuple[Mapping[str, float], ...]
    settings: tuple[str, ...] = ()
    passes: int = 0
    total_passes: int = 0
    step_ms: float | None = None

    def cells(self) -> list[str]:
        """Return the row as texts, one for each of ``HEADINGS``."""
        numbers = [_spread([score[name] for score in self.scores]) for name in ("dice", "ppv", "sensitivity")]
        if self.step_ms is None:
            return [self.title, *numbers, "", "", "", ""]
        settings = ", ".join(dict.fromkeys(self.settings))
        return [self.title, *numbers, settings, str(self.passes), str(self.total_passes), f"{self.step_ms:.0f} ms"]


@dataclass(frozen=True)
class DemoResult:
    """Everything that the demo found.

    Attributes:
        options: The options of the run, with their values.
        rows: The pre-trained network as it is, then the methods.
        report: The page of results.
        profile: The file with the learned rates of the exact method on the first seed.
        seconds: Time since this start; work that was finished before is not counted.
    """

    options: Mapping[str, Any]
    rows: tuple[DemoRow, ...]
    report: Path
    profile: Path
    seconds: float

    def table(self) -> Table:
        """Return the table for a terminal of 80 columns."""
        spread = " ± standard deviation over seeds" if self.options["seeds"] > 1 else ""
        table = Table(
            title=f"Test subjects: mean over both tissues{spread}",
            box=SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 0, 0, 1),
        )
        for heading, short in SHORT.items():
            table.add_column(short or heading, justify="left" if heading == "Method" else "right", no_wrap=True)
        for row in self.rows:
            cells = dict(zip(HEADINGS, row.cells(), strict=True))
            table.add_row(*(cells[heading] for heading in SHORT))
        return table

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "options": dict(self.options),
            "methods": [asdict(row) for row in self.rows],
            "report": str(self.report),
            "profile": str(self.profile),
            "seconds": round(self.seconds, 1),
        }


def run_demo(options: DemoOptions, *, console: Console | None = None) -> DemoResult:
    """Run the demo, or go on with it where it was interrupted.

    A network is pre-trained on one contrast and fine-tuned to another with few labelled cases, in several ways.
    Settings are chosen on validation cases; the table is of test cases.

    Args:
        options: The options; the folder ``options.out`` is made, or gone on with.
        console: Where progress is shown; by default the standard error stream.

    Returns:
        The rows of the table, and the path of the page.

    Raises:
        DataError: The images that were asked for are not there, or are too few.
        FolderError: The folder holds another run, or other things.
        SystemExit: With code 130, after Ctrl-C.
    """
    start = time.perf_counter()
    study, values = demo_study(options)
    claim = _claim(options.out, values)
    try:
        store = run_study(study, options.out, options.root, console=console)
    except BaseException:
        if claim is not None:
            _release(claim)
        raise
    context = StudyContext(study, options.root, store)
    trials_of = {key.method: trials for key, trials in chosen_trials(context).items()}
    rows = tuple(_row(key, title, trials) for key, (title, trials) in zip(KEYS, trials_of.items(), strict=True))
    profile = options.out / "profile.json"
    next(iter(learned_profiles(trials_of).values())).save(profile)
    report = options.out / "report.html"
    write_page(context, _page(study, values, rows), report)
    return DemoResult(values, rows, report, profile, time.perf_counter() - start)


def _claim(folder: Path, values: Mapping[str, Any]) -> StudyStore | None:
    """Take a folder for a run with these options, or go on with such a run.

    Returns:
        The store of the claimed folder, or None if the folder holds such a run already.

    Raises:
        FolderError: The folder holds a run with other options, or other things, or cannot be made.
    """
    wanted, store = json.loads(json.dumps(values)), StudyStore(folder)
    if (folder / RECORD).is_file():
        _require_same(folder, wanted)
        return None
    if (folder / "options.json").is_file() and (folder / "pieces").is_dir():
        raise FolderError(
            f"{folder} holds a demo of layertune 0.1, which this version cannot go on with; give another folder with "
            "--out, or remove this one"
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise FolderError(f"{folder} is not empty and holds no demo; give another folder with --out")
    store.write(folder / RECORD, f"{json.dumps(wanted, indent=2)}\n")
    return store


def _release(claim: StudyStore) -> None:
    """Give a folder back that holds no result, so that a demo with other options may take it."""
    if claim.is_empty:
        (claim.folder / RECORD).unlink(missing_ok=True)
        claim.discard_empty()


def _require_same(folder: Path, wanted: Mapping[str, Any]) -> None:
    path = folder / RECORD
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FolderError(
            f"{path} cannot be read ({type(error).__name__}: {error}), so nothing is known of the demo in this folder; "
            "give another folder with --out, or remove this one"
        ) from error
    if not isinstance(held, dict) or not held.keys() & wanted.keys():
        raise FolderError(f"{path} holds no options of a demo; give another folder with --out")
    keys = sorted(held.keys() | wanted.keys())
    other = [f"{key} {held.get(key)} (now {wanted.get(key)})" for key in keys if held.get(key) != wanted.get(key)]
    if other:
        raise FolderError(
            f"{folder} holds a demo with other options: {', '.join(other)}; give another folder with --out, or remove "
            "this one"
        )


def _row(key: str, title: str, trials: Sequence[ChosenTrial]) -> DemoRow:
    scores = tuple(one.result["test"] for one in trials)
    seconds = [second for one in trials for second in one.result["curve"]["seconds"]]
    if not seconds:
        return DemoRow(key, title, scores[:1])  # the pre-trained network is the same on all seeds
    first = trials[0]
    passes = round(passes_of_step(first.trial.method))
    candidates = sum(trial.group == first.trial.group for trial in first.context.trials)
    total = candidates * passes * steps_of(first.context.study, first.trial.method)  # had none of them diverged
    return DemoRow(key, title, scores, tuple(_setting(one) for one in trials), passes, total, 1000 * median(seconds))


def _setting(one: ChosenTrial) -> str:
    if isinstance(one.trial.method, BiDirectionalMethod):
        return "depths {} to {} frozen".format(*one.trial.setting.numbers)
    return f"rate {one.trial.lr:g}"


def _spread(values: Sequence[float]) -> str:
    """Return the mean, and the standard deviation where there are several values.

    Example:
        >>> _spread([0.8, 0.82]), _spread([0.8])
        ('0.810±0.014', '0.800')
    """
    spread = f"±{stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def _page(study: Study, values: Mapping[str, Any], rows: Sequence[DemoRow]) -> Page:
    cells = [row.cells() for row in rows]
    return Page("layertune demo", [_about(study, values)], HEADINGS, cells, [_note(study, values), PROFILE])


def _about(study: Study, values: Mapping[str, Any]) -> str:
    cases = (
        BRAINS_NOTE
        if study.data.set == "mni152"
        else f"The cases are those of {values['data']}; the source is inverted."
    )
    return (
        f"A U-Net was pre-trained on {values['source']} cases of one contrast and fine-tuned to another contrast with "
        f"{values['shots']} labelled cases, {values['steps']} steps for each method. {cases}"
    )


def _note(study: Study, values: Mapping[str, Any]) -> str:
    rates = ", ".join(f"{lr:g}" for lr in study.lrs)
    seeds = f", ± standard deviation over {values['seeds']} seeds" if values["seeds"] > 1 else ""
    return (
        f"Means over {3 * values['held_out']} test cases and both tissues{seeds}. Each seed has other labelled cases "
        f"and other batches. Settings were chosen for each seed by the Dice on {values['held_out']} validation cases: "
        f"for all layers and for the last layer the learning rate among {rates}, for bi-directional fine-tuning the "
        "frozen depths m to n, at the rate chosen for all layers. MetaLR had one setting: the proportional rule, "
        "hyper-rate 10, all rates started at 0.1, found on brains made with other seeds; the row of all layers at that "
        "same rate shows what learning it adds. Passes in all counts forward and backward passes for one seed with the "
        "search for the setting. The time of a step is its median, without making batches and measuring Dice."
    )
