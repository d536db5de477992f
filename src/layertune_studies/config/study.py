"""A study as its YAML file describes it, checked before anything runs."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from layertune.policies.by_name import method_name
from layertune_studies.config.clip_test import ClipTestSection
from layertune_studies.config.data import Data, Split
from layertune_studies.config.methods import METHOD_KINDS, LayerMethod, Loop, MethodConfig, Rates
from layertune_studies.config.pretraining import Pretraining
from layertune_studies.config.section import Count, Section, Several, Some, nearest, new_key, problem_message
from layertune_studies.config.sets import SETS
from layertune_studies.config.spelling import KINDS, spell_names, stored_kinds
from layertune_studies.config.training import Budget, Loss, Network, Optimizer
from layertune_studies.config.yaml_file import load_section

__all__ = ["Budget", "Data", "Loss", "Network", "Optimizer", "Pretraining", "Split", "Study", "load_study"]


class Study(Section):
    """Everything that the results of a study depend on, and how they are shown.

    Attributes:
        name: The name of the study, which is also that of its folder.
        loop: The training loop: ``"torch"``, the study's own; ``"lightning"``, Lightning's Trainer with
            layertune's callbacks; ``"nnunet"``, nnU-Net with layertune's trainers.
        title: Title of the table.
        paper: The table or figure of a paper that the study repeats.
        data: The images.
        network: The network that is fine-tuned.
        pretraining: Where the weights come from.
        optimizer: The optimizer and its schedule.
        budget: The length of each training.
        lrs: The learning rates from which each method chooses its own, on the validation cases.
        methods: The methods that are compared.
        seeds: How often each training is repeated, each time with other labelled cases, another head and other batches.
        metrics: The metrics of the table. The first one chooses settings, and between equal ones the second.
        report: ``"test"``, or ``"validation"`` while a method is developed; then the test cases are not used.
        compare: The names of the methods that count as baselines in the paired tests; by default all that learn no
            rates.
        keep_networks: Whether trained weights are kept, for figures of feature maps, gammas and examples.
        threads: Number of torch's threads.
        loss: The loss, if the cases are volumes; for images it is the cross-entropy.
        seed: Seed of all random choices beside that of each trial; by default trials depend on their own seed alone.
        curve: Measure the first metric on the validation cases each time after so many steps, for learning curves; by
            default never.
        checkpoints: Several pre-trainings by name, in place of one. Each method trains from each of them.
        clip: The clip test of the trained networks; by default there is none.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    loop: Loop = new_key("torch")
    title: str = ""
    paper: str = ""
    data: Data
    network: Network
    pretraining: Pretraining = Pretraining()
    optimizer: Optimizer = Optimizer()
    budget: Budget
    lrs: Rates
    methods: Annotated[Some[MethodConfig], BeforeValidator(stored_kinds)]
    seeds: Count = 5
    metrics: Several[str]
    report: Literal["test", "validation"] = "test"
    compare: Annotated[Several[str] | None, BeforeValidator(spell_names)] = None
    keep_networks: bool = False
    threads: Count = 1
    loss: Loss = new_key(Loss())
    seed: Annotated[int, Field(ge=0)] | None = new_key(None)
    curve: Count | None = new_key(None)
    checkpoints: Mapping[str, Pretraining] = new_key({})
    clip: ClipTestSection | None = new_key(None)

    @model_validator(mode="after")
    def _loop_has_methods(self) -> "Study":
        missing = [method.name for method in self.methods if self.loop not in method.loops]
        if missing:
            known = ", ".join(method_name(kind) for kind, method in METHOD_KINDS.items() if self.loop in method.loops)
            raise ValueError(f"loop {self.loop} cannot train by {missing[0]}; it has the kinds {known}")
        return self

    @model_validator(mode="after")
    def _nnunet_has_its_own(self) -> "Study":
        if (self.loop == "nnunet") != (self.network.name == "nnunet"):
            raise ValueError("network.name nnunet, the network that nnU-Net plans, goes with loop nnunet, and no other")
        if self.loop != "nnunet":
            return self
        for section, keys in NNUNETS_OWN.items():
            given = sorted(getattr(self, section).model_fields_set & set(keys))
            if given:
                raise ValueError(f"with loop nnunet, {section}.{given[0]} is nnU-Net's own; leave it out")
        _require_nnunets(self)
        return self

    @model_validator(mode="after")
    def _names_agree(self) -> "Study":
        names = [method.name for method in self.methods]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"two methods are called {', '.join(doubled)}; give one of them a title of its own")
        unknown = sorted(set(self.compare or ()) - set(names))
        if unknown:
            raise ValueError(f"compare names no method: {', '.join(unknown)}; the methods are {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _networks_are_kept(self) -> "Study":
        needs = [f"method {method.name} with after" for method in self.methods if method.after is not None]
        needs += ["clip"] if self.clip is not None else []
        if needs and not self.keep_networks:
            raise ValueError(f"{needs[0]} needs the trained networks; set keep_networks: true")
        return self

    @model_validator(mode="after")
    def _methods_find_what_they_need(self) -> "Study":
        if self.checkpoints and self.pretraining != Pretraining():
            raise ValueError("pretraining and checkpoints both say where the weights come from; leave one out")
        lists = [(method.name, method.checkpoints) for method in self.methods]
        if self.clip is not None:
            lists.append(("clip", self.clip.checkpoints))
        for owner, given in lists:
            _require_known(f"{owner}.checkpoints", given or (), self.checkpoints)
        for part in self.parts().values():
            tunes = any(method.finds_rate for method in part.methods)
            needs = [method.name for method in part.methods if method.lr == "tuned"]
            if needs and not tunes:
                raise ValueError(f"{needs[0]} takes the tuned rate, which a method of kind flat finds; add one")
            others = [method.name for method in part.methods if method.after is None]
            for method in part.methods:
                _require_known(f"{method.name}.after", [method.after] if method.after else [], others)
        return self

    def parts(self) -> "dict[str, Study]":
        """Return the study as one of a single pre-training for each checkpoint, by the checkpoint's name.

        A study without checkpoints has one part, itself, with an empty name.
        """
        if not self.checkpoints:
            return {"": self}
        return {
            name: self.model_copy(
                update={
                    "pretraining": pretraining,
                    "checkpoints": {},
                    "methods": tuple(one for one in self.methods if name in (one.checkpoints or self.checkpoints)),
                }
            )
            for name, pretraining in self.checkpoints.items()
        }


def _require_known(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"{owner} names {unknown[0]}, and there are {', '.join(known) or 'none'}")


# What nnU-Net decides itself, by section.
NNUNETS_OWN = {
    "data": ("size", "resample", "spacing", "window", "percentiles", "holdout", "augment", "binary"),
    "network": ("reset_head",),
    "pretraining": ("weights", "data", "batch", "optimizer", "schedule", "cycle", "early", "head"),
    "optimizer": ("momentum", "nesterov", "weight_decay", "head_factor", "schedule"),
}


def _require_nnunets(study: Study) -> None:
    """Refuse what nnU-Net cannot do.

    Raises:
        ValueError: The message says what, and what to write.
    """
    if SETS[study.data.set].kind not in ("decathlon", "volumes"):
        raise ValueError(f"loop nnunet reads files of volumes, and {study.data.set} has none; take another data set")
    if len(study.data.labelled) > 1:
        raise ValueError("loop nnunet plans one network, for one number of labelled cases; give one in data.labelled")
    if study.pretraining.task not in (None, "inverted"):
        raise ValueError(f"loop nnunet cannot pre-train by {study.pretraining.task}; take the task inverted, or none")
    if study.optimizer.name == "adam":
        raise ValueError("loop nnunet has nnU-Net's trainers with sgd and adamw; take one of them in optimizer.name")
    others = sorted(study.model_fields_set & {"keep_networks", "loss", "seed", "curve", "checkpoints", "clip"})
    if others or any(method.after for method in study.methods):
        raise ValueError(f"{(*others, 'after')[0]} is for the loops torch and lightning; leave it out with loop nnunet")
    learned = [method.name for method in study.methods if isinstance(method, LayerMethod) and method.learns]
    if learned:
        raise ValueError(
            f"rate learned, of {learned[0]}, is for the loops torch and lightning; leave it out with nnunet"
        )
    unknown = sorted(set(study.network.arguments) - {"narrower"})
    if unknown:
        raise ValueError(f"network.arguments.{unknown[0]} is unknown with loop nnunet, which knows narrower")


def load_study(path: Path) -> Study:
    """Read a study from its file and check it.

    Raises:
        StudyError: The file cannot be read, or a key or value is wrong; the message names the place.
    """
    return load_section(path, Study, "study", _message)


def _message(problem: Any) -> str:
    place, kind = problem["loc"], problem["type"]
    where = ".".join(str(part) for part in place if not _is_kind(part)) or "the study"
    if kind == "union_tag_invalid":
        given = str(problem["ctx"]["tag"])
        hint, kinds = nearest(given, KINDS), ", ".join(KINDS)
        return f"{where}: {given!r} is no kind of method{hint}; there are {kinds}"
    if kind == "union_tag_not_found":
        return f"{where}: each method says its kind: {', '.join(KINDS)}"
    return problem_message(problem, where, owner="a study", keys=_fields_at(place[:-1]))


def _is_kind(part: str | int) -> bool:
    """Return whether a part of a place is not a key but the kind as which pydantic tried to read a value."""
    return part in METHOD_KINDS or "[" in str(part) or str(part).startswith("constrained-")


def _fields_at(place: tuple[Any, ...]) -> list[str]:
    """Return the keys of the section at a place."""
    section: type[BaseModel] = Study
    for part in place:
        if part in METHOD_KINDS:
            section = METHOD_KINDS[part]
        elif part in section.model_fields:
            field = section.model_fields[str(part)].annotation
            sections = [
                kind for kind in (field, *get_args(field)) if isinstance(kind, type) and issubclass(kind, BaseModel)
            ]
            section = sections[0] if sections else section
    return list(section.model_fields)
