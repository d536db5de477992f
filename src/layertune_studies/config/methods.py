"""The methods that a study compares: what each can be told."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from layertune.metalr.rules import RULES
from layertune.metalr.settings import MetaLRSettings
from layertune.policies.by_name import method_name
from layertune_studies.config.section import Count, Fraction, Positive, Section, Several, nearest, new_key

__all__ = [
    "METHOD_KINDS",
    "AlchemyMethod",
    "AutoLRMethod",
    "BiDirectionalMethod",
    "Decay",
    "Flat",
    "Last",
    "LastThenAll",
    "LayerWiseMethod",
    "Loop",
    "MetaLRMethod",
    "Method",
    "MethodConfig",
    "NormOnly",
    "ProdigyMethod",
    "Rates",
    "Scratch",
    "Section",
    "UNet",
    "Untuned",
]

Rates: TypeAlias = Several[Positive]
Loop: TypeAlias = Literal["torch", "lightning", "nnunet"]
LOOPS: tuple[Loop, ...] = ("torch", "lightning", "nnunet")


class Method(Section):
    """What all methods share.

    Attributes:
        loops: The loops that can train by the method.
        title: for tables, and to tell apart two methods of one kind.
        lr: rates to choose from: ``"grid"`` (the study's), ``"tuned"`` (the one that the flat rate chose on the same
            seed and labelled cases) or a list of its own.
        amount: The number of passes or steps of the training, in place of that of the study's budget.
        checkpoints: The names of the checkpoints of the study that the method starts from; by default all.
        after: The name of another method. The training goes on from the network which that method chose on the same
            seed and labelled cases; by default it starts from the pre-trained weights.
    """

    loops: ClassVar[tuple[Loop, ...]] = ("torch",)

    kind: str
    title: str | None = None
    lr: Literal["grid", "tuned"] | Rates = "grid"
    amount: Count | None = new_key(None)
    checkpoints: Several[str] | None = new_key(None)
    after: str | None = new_key(None)

    @property
    def name(self) -> str:
        """The name of the method in tables: its title, or else its kind."""
        return self.title or method_name(self.kind)

    @property
    def learns(self) -> bool:
        """Whether it learns its rates from meta batches, and so is none of the baselines."""
        return False


class Untuned(Method):
    """The pre-trained network as it is, without any fine-tuning."""

    kind: Literal["untuned"]
    lr: Literal["grid", "tuned"] | Rates = (1.0,)
    loops: ClassVar[tuple[Loop, ...]] = LOOPS


class Flat(Method):
    """All layers at one rate."""

    loops: ClassVar[tuple[Loop, ...]] = LOOPS
    kind: Literal["flat"]


class Scratch(Method):
    """All layers at one rate, from random weights."""

    loops: ClassVar[tuple[Loop, ...]] = LOOPS
    kind: Literal["scratch"]


class Last(Method):
    """The last layer alone."""

    loops: ClassVar[tuple[Loop, ...]] = LOOPS
    kind: Literal["last"]


class LayerWiseMethod(Method):
    """Depths k to d; k is searched.

    Attributes:
        first: values of k; by default all, from d downwards.
    """

    loops: ClassVar[tuple[Loop, ...]] = LOOPS
    kind: Literal["layer-wise"]
    first: Several[int] | None = None


class BiDirectionalMethod(Method):
    """Depths m to n frozen; (m, n) is searched.

    Attributes:
        depth: How depths are read, ``"I1"`` or ``"I2"``; by default as the study reads them. It needs ``settings``.
        settings: pairs (m, n); by default all d(d-1)/2.
        search: ``"grid"``: all of them to the end; or ``"halving"``: successive halving, a fifth of the passes.
    """

    loops: ClassVar[tuple[Loop, ...]] = LOOPS
    kind: Literal["bi-directional"]
    settings: Several[tuple[int, int]] | None = None
    search: Literal["grid", "halving"] = "grid"
    depth: Literal["I1", "I2"] | None = new_key(None)

    @model_validator(mode="after")
    def _depth_has_settings(self) -> "BiDirectionalMethod":
        if self.depth is not None and self.settings is None:
            raise ValueError("a method with a depth of its own needs settings; give pairs (m, n)")
        return self


class Decay(Method):
    """Rates that fall from the head by a factor a layer.

    Attributes:
        rates: factors to choose from.
    """

    kind: Literal["layer-decay"]
    rates: Several[Annotated[float, Field(gt=0, le=1)]] = (0.75,)


class LastThenAll(Method):
    """First the last layer alone, then all layers.

    Attributes:
        share: of the steps in which the last layer alone is trained.
        drop: what the rate is multiplied by for the second part.
    """

    kind: Literal["last-then-all"]
    share: Fraction = 0.3
    drop: Positive = 0.1


class UNet(Method):
    """One part of a U-Net (Amiri et al. 2020).

    Attributes:
        schemes: ``"contracting"``, ``"expanding"``, or ``"top-down"`` and ``"bottom-up"`` with the number of levels, as
            in ``top-down-2``; by default all.
    """

    loops: ClassVar[tuple[Loop, ...]] = LOOPS
    kind: Literal["unet"]
    schemes: Several[str] | None = None


class AutoLRMethod(Method):
    """AutoLR (Ro and Choi 2021): rates by trial and error within each epoch.

    Attributes:
        threshold: sorting quality that a trial must reach in the first epoch.
        f_min: see ``layertune.AutoLR``.
        f_max: see ``layertune.AutoLR``.
        max_trials: of one epoch.
    """

    kind: Literal["autolr"]
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.94
    f_min: Positive = 2.0
    f_max: Positive = 0.4
    max_trials: Annotated[int, Field(ge=1)] = 5


class ProdigyMethod(Method):
    """Prodigy (Mishchenko and Defazio 2024), which needs no learning rate."""

    kind: Literal["prodigy"]
    lr: Literal["grid", "tuned"] | Rates = (1.0,)


class NormOnly(Method):
    """The normalisation layers alone (Network Alchemy, tab. 4.3).

    Attributes:
        head: whether the last layer is trained too.
    """

    kind: Literal["norm-only"]
    head: bool = False


class AlchemyMethod(Method):
    """Network Alchemy: identification, modification, maximisation (thesis sec. 3.2.2).

    Attributes:
        identification: share of the steps in which the norms alone are trained; with 0 the gammas are judged as they
            are.
        modification: whether redundant kernels start afresh.
        threshold: a kernel whose gamma lies below it is redundant; 0.05 where neither it nor a quantile is given.
        quantile: in its place, the share of kernels to start afresh.
        penalty: lambda of the BNScale regularisation.
        head: whether the last layer is trained in the identification too.
    """

    kind: Literal["alchemy"]
    identification: Annotated[float, Field(ge=0, lt=1)] = 0.3
    modification: bool = True
    threshold: Positive | None = None
    quantile: Fraction | None = None
    penalty: Annotated[float, Field(ge=0)] = 1e-4
    head: bool = False

    @model_validator(mode="after")
    def _one_bound(self) -> "AlchemyMethod":
        if self.threshold is not None and self.quantile is not None:
            raise ValueError("threshold and quantile both say which kernels are redundant; leave one of them out")
        return self


def _known_rule(rule: str) -> str:
    if rule not in RULES:
        raise ValueError(f"{rule!r} is no rule{nearest(rule, RULES)}; there are {', '.join(RULES)}")
    return rule


class MetaLRMethod(Method):
    """Learned rates.

    Attributes:
        mode: ``"exact"``, ``"every"`` (each ``every``-th step) or ``"streaming"``.
        every: for the mode of that name.
        rule: How a rate follows its meta gradient, a rule of ``layertune.MetaLR``.
        hyper_lr: step size of the learning rates; by default what suits the rule.
        min_lr: floor.
        max_lr: ceiling, above the floor.
        max_change: largest factor of one adaptation; ``.inf`` for none.
    """

    loops: ClassVar[tuple[Loop, ...]] = LOOPS
    kind: Literal["metalr"]
    mode: Literal["exact", "every", "streaming"] = "exact"
    every: Annotated[int, Field(ge=2)] = 10
    rule: Annotated[str, AfterValidator(_known_rule)] = "joint"
    hyper_lr: Annotated[float, Field(ge=0)]
    min_lr: Annotated[float, Field(ge=0)] = 1e-6
    max_lr: Positive | None = None
    max_change: Annotated[float, Field(gt=1, allow_inf_nan=True)] = 2.0

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, given: Any) -> Any:
        """The number itself is part of what a trial is known by, so that it is found when a default changes."""
        if isinstance(given, Mapping) and given.get("hyper_lr") is None:
            return {**given, "hyper_lr": MetaLRSettings.given(rule=given.get("rule")).hyper_lr}
        return given

    @model_validator(mode="after")
    def _floor_below_ceiling(self) -> "MetaLRMethod":
        if self.max_lr is not None and self.max_lr <= self.min_lr:
            raise ValueError(f"max_lr is {self.max_lr:g}, and has to be above min_lr, {self.min_lr:g}")
        return self

    def learner_options(self) -> dict[str, Any]:
        """Return the arguments of ``layertune.MetaLR``."""
        options = self.model_dump(include={"hyper_lr", "rule", "min_lr", "max_lr", "max_change"})
        every = self.every if self.mode == "every" else 1
        return {**options, "every": every, "streaming": self.mode == "streaming"}

    @property
    def name(self) -> str:
        """What the method is called."""
        return self.title or f"metalr-{self.mode}-{self.rule}"

    @property
    def learns(self) -> bool:
        """Yes."""
        return True


MethodConfig: TypeAlias = Annotated[
    Untuned
    | Flat
    | Scratch
    | Last
    | LayerWiseMethod
    | BiDirectionalMethod
    | Decay
    | LastThenAll
    | UNet
    | AutoLRMethod
    | ProdigyMethod
    | NormOnly
    | AlchemyMethod
    | MetaLRMethod,
    Field(discriminator="kind"),
]
METHOD_KINDS: dict[str, type[Method]] = {
    "untuned": Untuned,
    "flat": Flat,
    "scratch": Scratch,
    "last": Last,
    "layer-wise": LayerWiseMethod,
    "bi-directional": BiDirectionalMethod,
    "layer-decay": Decay,
    "last-then-all": LastThenAll,
    "unet": UNet,
    "autolr": AutoLRMethod,
    "prodigy": ProdigyMethod,
    "norm-only": NormOnly,
    "alchemy": AlchemyMethod,
    "metalr": MetaLRMethod,
}
