"""A trial of a study: a method's setting at a learning rate on the labelled cases of a seed."""

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
from layertune_studies.config.methods import LayerMethod, Method, Scratch
from layertune_studies.config.sets import SETS
from layertune_studies.config.study import Data, Study
from layertune_studies.data.case import Batch
from layertune_studies.data.cases import Cases
from layertune_studies.engine.held_data import study_cases, trial_batches
from layertune_studies.errors import StudyError
from layertune_studies.training.loop import Task, Training, TrainingResult
from layertune_studies.training.loss import make_loss
from layertune_studies.training.methods import train
from layertune_studies.training.metrics import evaluate
from layertune_studies.training.network import adopt_weights, device, make_network, network_layers, reset_head
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
    """The training that a result belongs to.

    Attributes:
        method: The method, as the study's file describes it.
        setting: The setting of the method, which says which layers are trained.
        lr: Base learning rate; None while the tuned rate is not known.
        labelled: The number of labelled cases.
        seed: Seed of the labelled cases, the head and the batches.
        after: The trial, by name, whose network it starts from, if its method has ``after``; None while not known.
    """

    method: Method
    setting: Setting
    lr: float | None
    labelled: int | Literal["all"]
    seed: int
    after: str | None = None

    def identity(self, study: Study) -> dict[str, Any]:
        """Return everything that the result depends on, without what concerns other trials or the table."""
        parts = study.model_dump(mode="json", include=PARTS)
        parts["data"] = data_identity(study.data)
        method = self.method.model_dump(mode="json", exclude={"title", "lr", "checkpoints", "after"})
        # These keys list settings, of which this trial has one.
        choices = ("first", "settings", "search", "schemes", "rates", "exponents", "alphas")
        parts["method"] = {key: value for key, value in method.items() if key not in choices}
        if isinstance(self.method, LayerMethod) and self.method.learns:
            parts["method"]["learner"] = self.method.learner_options()  # its defaults may change
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
        """Return a readable name for files, which differs from that of any trial whose result may differ."""
        digest = hashlib.sha256(json.dumps(self.identity(study), sort_keys=True).encode()).hexdigest()[:12]
        kind = "-".join(part for part in (self.method.kind, getattr(self.method, "mode", "")) if part)
        return f"{kind}_{self.setting.label}_lr{self.lr:g}_n{self.labelled}_seed{self.seed}_{digest}"

    @property
    def group(self) -> tuple[str, int | str, int]:
        """The method, the number of labelled cases and the seed; one trial of each such group is reported."""
        return self.method.name, self.labelled, self.seed


def data_identity(data: Data, *left_out: str) -> dict[str, Any]:
    """Return the data section as part of a file's name; the folder counts only if it is a user's own data set."""
    known = {"folder"} if SETS[data.set].classes is not None else set[str]()
    whole: dict[str, Any] = data.model_dump(mode="json", exclude={"labelled", *left_out, *known})
    return whole


def all_trials(study: Study, depths: Depths) -> list[Trial]:
    """Return all trials of a study, seed by seed, those that need no tuned rate first.

    Raises:
        PolicyError: A setting does not fit the network.
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
    """Return the learning rates that a method tries; None stands for the tuned one."""
    if method.lr == "grid":
        return study.lrs
    return (None,) if method.lr == "tuned" else method.lr


def ranking(study: Study, scores: Mapping[str, float]) -> float:
    """Return one number to compare trials by: the study's first metric, and between equal trials its second.

    Accuracies on few validation cases are often equal.

    Raises:
        StudyError: The study asks for a metric that was not measured.
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
    """Train and evaluate.

    Args:
        study: The study that the trial belongs to.
        trial: The trial, whose rate is known.
        root: The folder of all data.
        start: The weights that it starts from, None for random weights, or the folder of nnU-Net's data.
        tell: Progress callback, called with the number of steps done.

    Returns:
        Plain values: ``identity``, ``validation``, ``test`` (None if the study does not use the test cases),
        ``diverged``, ``steps``, ``passes``, ``seconds``, ``lrs``, ``profile``, ``trials``, ``redundant``, ``warnings``;
        ``curve``, where the study wants learning curves; and ``network``, a state dict, where the study keeps it.

    Raises:
        DataError: The cases are not there, or cannot be used.
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
) -> tuple[TrainingResult, dict[str, Any]]:
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
    """Return a trial's network and batches at its start; the arguments are those of ``run_trial``.

    Raises:
        DataError: The cases are not there, or cannot be used.
    """
    assert trial.lr is not None
    torch.set_num_threads(study.threads)
    cases = study_cases(study, root)
    batch, meta_batch, count = trial_batches(study, root, trial.labelled, trial.seed)
    torch.manual_seed(trial.seed)
    scratch = isinstance(trial.method, Scratch)
    network = make_network(study.network, classes=cases.classes, shape=cases.shape, pretrained=not scratch)
    layers = study_layers(study, cases, depth_of(study, trial.method))
    if study.network.reset_head:
        reset_head(network, layers)
    if weights is not None and not scratch:
        adopt_weights(network, weights)
    network.to(device())
    task = Task(lambda step: _on_device(batch(step)), lambda step: _on_device(meta_batch(step)))
    epoch_steps = math.ceil(count / study.budget.batch)
    loss = make_loss(study, cases).to(device())

    def score() -> float:
        return evaluate(network, cases.validation, classes=cases.classes, patch=study.data.patch)[study.metrics[0]]

    kernel_seed = 0 if study.seed is None else trial.seed  # of studies without a seed, as version 0.1 drew kernels
    return Training(study, network, layers, task, loss, epoch_steps, trial.lr, tell, kernel_seed, score)


def _on_device(batch: Batch) -> Batch:
    return batch[0].to(device()), batch[1].to(device())


def _scores(study: Study, cases: Cases, network: nn.Module) -> dict[str, Any]:
    """Return the scores of a network; one that diverged scores 0, so that no search chooses it."""
    diverged = not all(bool(torch.isfinite(value).all()) for value in network.state_dict().values())
    by_part: dict[str, Any] = {"diverged": diverged, "test": None}
    parts = {"validation": cases.validation} | ({"test": cases.test} if study.report == "test" else {})
    for name, part in parts.items():
        scores = evaluate(network, part, classes=cases.classes, patch=study.data.patch)
        by_part[name] = dict.fromkeys(scores, 0.0) if diverged else scores
    return by_part
