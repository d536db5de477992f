"""One trial of a study: one method's setting at one rate on one seed's labelled cases; on any machine the same."""

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from sys import stderr
from typing import Any, Literal

import torch
from torch import Tensor, nn

from layertune import LayerMap
from layertune.layers.layer import Depth
from layertune_studies.config.methods import Method, Scratch
from layertune_studies.config.sets import SETS
from layertune_studies.config.study import Data, Study
from layertune_studies.data.case import Batch
from layertune_studies.data.cases import Cases
from layertune_studies.engine.held_data import study_cases, trial_batches
from layertune_studies.errors import StudyError
from layertune_studies.training.loop import Task, Trained, Training
from layertune_studies.training.loss import make_loss
from layertune_studies.training.methods import train
from layertune_studies.training.metrics import evaluate
from layertune_studies.training.network import adopt_weights, device, make_network, network_layers
from layertune_studies.training.settings import Depths, Setting, settings_of

__all__ = [
    "Start",
    "Trial",
    "all_trials",
    "data_identity",
    "depth_of",
    "ranking",
    "run_trial",
    "study_layers",
    "training_of",
]

Weights = Mapping[str, Tensor]
Start = Weights | Path | None
TIE = 1e-4  # below one case of ten thousand
PARTS = {"network", "pretraining", "optimizer", "budget", "report", "loop", "loss", "seed"}


@dataclass(frozen=True)
class Trial:
    """What a result belongs to.

    Attributes:
        method: how it is trained.
        setting: which layers.
        lr: base learning rate; ``None`` while the tuned one is not known.
        labelled: how many labelled cases.
        seed: which of them, which head, which batches.
        after: The trial, by name, whose network it starts from, if its method has ``after``; None while not known.
    """

    method: Method
    setting: Setting
    lr: float | None
    labelled: int | Literal["all"]
    seed: int
    after: str | None = None

    def identity(self, study: Study) -> dict[str, Any]:
        """All that the result depends on; what only concerns other trials or the table is left out."""
        parts = study.model_dump(mode="json", include=PARTS)
        parts["data"] = data_identity(study.data)
        method = self.method.model_dump(mode="json", exclude={"title", "lr", "checkpoints", "after"})
        choices = ("first", "settings", "search", "schemes", "rates")  # these list settings, of which this is one
        parts["method"] = {key: value for key, value in method.items() if key not in choices}
        own: dict[str, Any] = {
            "setting": self.setting.as_dict(),
            "lr": self.lr,
            "labelled": self.labelled,
            "seed": self.seed,
        }
        own |= {"after": self.after} if self.after is not None else {}
        whole: dict[str, Any] = json.loads(json.dumps({**parts, **own}))
        return whole

    def name(self, study: Study) -> str:
        """Fit for a file name: readable, and unlike that of any trial whose result may differ."""
        digest = hashlib.sha256(json.dumps(self.identity(study), sort_keys=True).encode()).hexdigest()[:12]
        kind = "-".join(part for part in (self.method.kind, getattr(self.method, "mode", "")) if part)
        return f"{kind}_{self.setting.label}_lr{self.lr:g}_n{self.labelled}_seed{self.seed}_{digest}"

    @property
    def group(self) -> tuple[str, int | str, int]:
        """Method, labelled cases and seed: of its trials one is reported."""
        return self.method.name, self.labelled, self.seed


def data_identity(data: Data, *left_out: str) -> dict[str, Any]:
    """A study's data as part of a file's name. A known set may lie anywhere; a folder of one's own says what it is."""
    known = {"folder"} if SETS[data.set].classes is not None else set[str]()
    whole: dict[str, Any] = data.model_dump(mode="json", exclude={"labelled", *left_out, *known})
    return whole


def all_trials(study: Study, depths: Depths) -> list[Trial]:
    """Every trial of a study, seed by seed, those that need no tuned rate first.

    Raises:
        PolicyError: a setting does not fit the network.
    """
    trials = [
        Trial(method, setting, lr, labelled, seed)
        for seed in range(study.seeds)
        for labelled in study.data.labelled
        for method in study.methods
        for setting in settings_of(method, depths)
        for lr in rates_of(study, method)
    ]
    return sorted(trials, key=lambda trial: trial.lr is None)


def rates_of(study: Study, method: Method) -> tuple[float | None, ...]:
    """The rates that a method tries."""
    if method.lr == "grid":
        return study.lrs
    return (None,) if method.lr == "tuned" else method.lr


def ranking(study: Study, scores: Mapping[str, float]) -> float:
    """One number to compare trials by: the study's first metric, and of equals its second.

    Accuracies on few validation cases are often equal.

    Raises:
        StudyError: the study asks for a metric that was not measured.
    """
    unknown = [metric for metric in study.metrics if metric not in scores]
    if unknown:
        raise StudyError(f"metrics: {unknown[0]} was not measured on these cases; there are {', '.join(scores)}")
    first, *others = (scores[metric] for metric in study.metrics[:2])
    return first + TIE * sum(others)


def depth_of(study: Study, method: Method) -> Depth:
    """Return how a method reads depths: its own way, or else the study's."""
    depth: Depth = getattr(method, "depth", None) or study.network.depth
    return depth


def study_layers(study: Study, cases: Cases, depth: Depth) -> LayerMap:
    """Return the layers of the study's network, with depths read in one of the two ways."""
    network = study.network.model_copy(update={"depth": depth})
    return network_layers(network, classes=cases.classes, shape=cases.shape)


def run_trial(
    study: Study,
    trial: Trial,
    root: Path | None,
    start: Start,
    tell: Callable[[int], object] = lambda _: None,
) -> dict[str, Any]:
    """Train and measure.

    Args:
        study: as its file says.
        trial: what to do; its rate is known.
        root: the folder of all data.
        start: The weights that it starts from, None for random weights, or the folder of nnU-Net's data.
        tell: told the steps done.

    Returns:
        Plain values: ``identity``, ``validation``, ``test`` (``None`` where the study does not look), ``diverged``,
        ``steps``, ``passes``, ``seconds``, ``lrs``, ``profile``, ``trials``, ``redundant``, ``warnings``; ``curve``,
        where the study wants learning curves; and ``network``, a state dict, where the study keeps it.

    Raises:
        DataError: the cases are not there, or cannot be used.
    """
    with warnings.catch_warnings(record=True) as warned, redirect_stdout(stderr):
        warnings.simplefilter("always", RuntimeWarning)
        if isinstance(start, Path):
            trained, scores, network = *_trained_by_nnunet(study, trial, start, tell), None
        else:
            training = training_of(study, trial, root, start, tell)
            trained, network = train(training, trial.method, trial.setting), training.network
            scores = _scores(study, study_cases(study, root), network)
    result = {
        "identity": trial.identity(study),
        **scores,
        "steps": trained.steps,
        "passes": trained.passes,
        "seconds": round(trained.cpu_seconds, 3),
        "lrs": trained.lrs,
        "profile": trained.profile,
        "trials": trained.trials,
        "redundant": trained.redundant,
        "warnings": sorted({str(one.message) for one in warned if one.category is RuntimeWarning}),
    }
    if study.curve:
        end = (trained.steps, result["validation"][study.metrics[0]])
        points = [*trained.curve, end]
        result["curve"] = {"validation": points, "losses": trained.losses, "seconds": trained.seconds}
    if study.keep_networks and network is not None:
        result["network"] = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    return result


def _trained_by_nnunet(
    study: Study, trial: Trial, folder: Path, tell: Callable[[int], object]
) -> tuple[Trained, dict[str, Any]]:
    from layertune_studies.training.nnunet import train_and_score

    assert trial.lr is not None
    name = trial.name(study)
    return train_and_score(
        study, trial.method, trial.setting, lr=trial.lr, seed=trial.seed, folder=folder, name=name, tell=tell
    )


def training_of(
    study: Study,
    trial: Trial,
    root: Path | None,
    weights: Weights | None,
    tell: Callable[[int], object] = lambda _: None,
) -> Training:
    """What a trial trains and on what, at its start; the arguments are those of ``run_trial``.

    Raises:
        DataError: the cases are not there, or cannot be used.
    """
    assert trial.lr is not None
    torch.set_num_threads(study.threads)
    cases = study_cases(study, root)
    batch, meta_batch, count = trial_batches(study, root, trial.labelled, trial.seed)
    torch.manual_seed(trial.seed)
    scratch = isinstance(trial.method, Scratch)
    network = make_network(study.network, classes=cases.classes, shape=cases.shape, pretrained=not scratch)
    layers = study_layers(study, cases, depth_of(study, trial.method))
    if weights is not None and not scratch:
        adopt_weights(network, weights)
    network.to(device())
    task = Task(lambda step: _on_device(batch(step)), lambda step: _on_device(meta_batch(step)), ())
    epoch_steps = math.ceil(count / study.budget.batch)
    loss = make_loss(study, cases).to(device())

    def score() -> float:
        return evaluate(network, cases.validation, classes=cases.classes, patch=study.data.patch)[study.metrics[0]]

    return Training(study, network, layers, task, loss, epoch_steps, trial.lr, tell, score)


def _on_device(batch: Batch) -> Batch:
    return batch[0].to(device()), batch[1].to(device())


def _scores(study: Study, cases: Cases, network: nn.Module) -> dict[str, Any]:
    """Of validation and test cases; a network that diverged has 0 everywhere, so that no search chooses it."""
    diverged = not all(bool(torch.isfinite(value).all()) for value in network.state_dict().values())
    found: dict[str, Any] = {"diverged": diverged, "test": None}
    parts = {"validation": cases.validation} | ({"test": cases.test} if study.report == "test" else {})
    for name, part in parts.items():
        scores = evaluate(network, part, classes=cases.classes, patch=study.data.patch)
        found[name] = dict.fromkeys(scores, 0.0) if diverged else scores
    return found
