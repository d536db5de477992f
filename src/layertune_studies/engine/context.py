"""The parts that all trials of a study share: its data, its network and the store of results."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from layertune import LayerMap
from layertune.layers.layer import Depth
from layertune_studies.config.study import Study
from layertune_studies.data.cases import Cases
from layertune_studies.engine.held_data import study_cases
from layertune_studies.engine.known_names import require_known_names
from layertune_studies.engine.search import better, rounds
from layertune_studies.engine.store import DEPTHS, StudyStore
from layertune_studies.engine.trial import Start, Trial, all_trials, data_identity, ranking, study_layers
from layertune_studies.errors import StudyError
from layertune_studies.training.network import make_network
from layertune_studies.training.pretraining import pretrain
from layertune_studies.training.settings import Depths

__all__ = ["Executor", "Result", "StudyContext", "best_of", "depths_name", "pretraining_name"]


Result = dict[str, Any]


class Executor(Protocol):
    """Runs trials in any order, on this machine or on many."""

    def run(self, context: "StudyContext", trials: Sequence[Trial]) -> Iterator[tuple[Trial, Result]]:
        """Yield each trial with its result when it is finished, once."""
        ...


class StudyContext:
    """A study with its data, network and folder.

    Args:
        study: The study, as its file describes it.
        root: The folder of all data.
        store: The store of results.
        tell: Progress callback, called as ``tell(title, step)``.
    """

    def __init__(
        self, study: Study, root: Path | None, store: StudyStore, tell: Callable[[str, int], object] = lambda *_: None
    ) -> None:
        self.study = study
        self.root = root
        self.store = store
        self.tell = tell

    @cached_property
    def cases(self) -> Cases:
        """All cases; each is read and checked when it is asked for.

        Raises:
            StudyError: The study names a metric that its task does not have.
            ModelError: The study names a network that nobody knows.
        """
        require_known_names(self.study)
        return study_cases(self.study, self.root)

    @property
    def layers(self) -> LayerMap:
        """The layers of the network, with depths as the study reads them."""
        return self.layers_with(self.study.network.depth)

    def layers_with(self, depth: Depth) -> LayerMap:
        """Return the layers of the network, with depths read in one of the two ways."""
        if self.study.loop != "nnunet":
            return study_layers(self.study, self.cases, depth)
        from layertune_studies.training.nnunet import planned_layers

        return planned_layers(self.study, self.nnunet_folder, depth)

    @cached_property
    def nnunet_folder(self) -> Path:
        """The folder of nnU-Net's data, with the network planned and the cases preprocessed."""
        from layertune_studies.data.nnunet import prepare

        folder = self.store.folder / nnunet_name(self.study)
        self.tell("preparing for nnU-Net", 0)
        prepare(self.study, self.cases, folder)
        return folder.resolve()

    @cached_property
    def depths(self) -> Depths:
        """The depth of the network; it is kept in the folder, so that tables need neither data nor network."""
        name = depths_name(self.study)
        held = self.store.load(name)
        if held is None:
            held = asdict(Depths.of(self.layers))
            self.store.save(name, held)
        return Depths(**held)

    def pretrain(self) -> None:
        """Make what the trials start from, unless it is there."""
        if self.study.loop != "nnunet":
            _ = self.weights
            return
        from layertune_studies.training.nnunet import pretrain as pretrain_by_nnunet

        pretrain_by_nnunet(self.study, self.nnunet_folder, lambda step: self.tell("pre-training", step))

    @cached_property
    def weights(self) -> Mapping[str, Tensor] | None:
        """The pre-trained weights; they are made once, and kept in the folder of results if they were made here."""
        if self.study.pretraining.task is None:
            return pretrain(self.study, self.cases, self.root, lambda _: None)
        name = pretraining_name(self.study)
        held: Mapping[str, Tensor] | None = self.store.load_tensors(name)
        if held is None:
            held = pretrain(self.study, self.cases, self.root, lambda step: self.tell("pre-training", step))
            self.store.save_tensors(name, held)
        return held

    @cached_property
    def trials(self) -> list[Trial]:
        """All trials; the rate of those that wait for the tuned one is None."""
        return all_trials(self.study, self.depths)

    def parts(self) -> dict[str, "StudyContext"]:
        """Return the study by checkpoint, each part with one pre-training; a study without checkpoints is one part."""
        return self._parts if self.study.checkpoints else {"": self}

    @cached_property
    def _parts(self) -> dict[str, "StudyContext"]:
        return {
            name: StudyContext(study, self.root, self.store, self.tell) for name, study in self.study.parts().items()
        }

    def start(self, trial: Trial) -> Start:
        """Return the weights that a trial starts from, None for random ones, or the folder of nnU-Net's data."""
        return self.nnunet_folder if self.study.loop == "nnunet" else self.weights_before(trial)

    def weights_before(self, trial: Trial) -> Mapping[str, Tensor] | None:
        """Return the weights that a trial starts from, or None for random ones."""
        if trial.after is None:
            return self.weights
        weights: Mapping[str, Tensor] = self.store.load_tensors(trial.after)
        return weights

    def network(self, name: str) -> nn.Module:
        """Return the network that a trial ended with.

        Args:
            name: The name of the trial.

        Raises:
            StudyError: The network was not kept.
        """
        tensors = self.store.load_tensors(name)
        if tensors is None:
            raise StudyError(f"the network of {name} is not kept; set keep_networks: true, and run the study again")
        network = make_network(self.study.network, classes=self.cases.classes, shape=self.cases.shape, pretrained=False)
        network.load_state_dict(tensors)
        return network.eval()

    def result(self, trial: Trial) -> Result | None:
        """Return the result of a trial, or None if it is not finished."""
        return None if trial.lr is None else self.store.load(trial.name(self.study))

    def results(self, trials: Iterable[Trial]) -> dict[Trial, Result]:
        """Return the results of the finished ones of some trials."""
        return {trial: result for trial in trials if (result := self.result(trial)) is not None}

    def holds(self, name: str) -> bool:
        """Return whether everything that the study keeps of a trial is there."""
        complete = not self.study.keep_networks or self.store.tensors(name).is_file()
        result = self.store.load(name) if complete else None
        return result is not None and (self.study.curve is None or "curve" in result)

    def found(self, trials: Sequence[Trial]) -> tuple[dict[Trial, Result], float] | None:
        """Return the outcome of a search, or None if it is not finished.

        The outcome is the results of the trials with the whole budget, and the passes of all trials.
        """
        passes: dict[str, float] = {}
        results: dict[Trial, Result] = {}
        for study, count in rounds(self.study, trials[0].method, len(trials)):
            trials = better(study, results, count) if results else trials
            results = StudyContext(study, self.root, self.store).results(trials)
            if len(results) < len(trials):
                return None
            passes |= {trial.name(study): float(result["passes"]) for trial, result in results.items()}
        return results, sum(passes.values())

    def ready(self, trials: Iterable[Trial]) -> list[Trial]:
        """Return those of the trials whose rate and start are known, with both."""
        return [tuned for trial in trials if (tuned := self.tuned(trial)) is not None]

    def tuned(self, trial: Trial) -> Trial | None:
        """Return a trial with its rate and its start; None while one of them is not known.

        The tuned rate is that of the flat method's best trial on the same seed. A method with ``after`` starts from the
        network of the other method's best trial.
        """
        if trial.lr is None:
            flat = next(method for method in self.study.methods if method.finds_rate)
            best = self._best(flat.name, trial)
            if best is None:
                return None
            trial = replace(trial, lr=best.lr)
        if trial.method.after is not None and trial.after is None:
            best = self._best(trial.method.after, trial)
            if best is None:
                return None
            trial = replace(trial, after=best.name(self.study))
        return trial

    def _best(self, method: str, like: Trial) -> Trial | None:
        """Return a method's best trial on a trial's seed and labelled cases; None while the method is not finished."""
        rivals = [one for one in self.trials if one.group == (method, like.labelled, like.seed)]
        ready = self.ready(rivals)
        results = self.results(ready)
        return best_of(self.study, results) if len(results) == len(rivals) else None


def best_of(study: Study, results: Mapping[Trial, Result]) -> Trial:
    """Return the trial that the validation cases choose: by the study's first metric, then by its second."""
    return max(results, key=lambda trial: ranking(study, results[trial]["validation"]))


def depths_name(study: Study) -> str:
    """Return the name of the file that holds the depths of a study's network."""
    return f"{DEPTHS}{_digest(study.model_dump_json(include={'network', 'data'}))}"


def pretraining_name(study: Study) -> str:
    """Return the name of the file that holds a study's pre-trained weights."""
    parts = study.model_dump(mode="json", include={"network", "pretraining"})
    parts["data"] = data_identity(study.data, "holdout", "validation", "test")
    return f"pretraining_{_digest(json.dumps(parts, sort_keys=True))}"


def nnunet_name(study: Study) -> str:
    """Return the name of the folder of nnU-Net's data."""
    parts = study.model_dump(mode="json", include={"network", "pretraining", "data", "optimizer"})
    parts |= {"batch": study.budget.batch, "epoch": study.budget.epoch}
    return f"nnunet_{_digest(json.dumps(parts, sort_keys=True))}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
