"""The methods that a study compares, with the settings of each."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from layertune.metalr.settings import RULE_NAMES, MetaLRSettings
from layertune_studies.config.layer_methods import (
    BiDirectionalMethod,
    Decay,
    Flat,
    InverseSizeMethod,
    Last,
    LayerMethod,
    LayerWiseMethod,
    NormOnly,
    Scratch,
    UNet,
    Untuned,
)
from layertune_studies.config.method import LOOPS, Loop, Method, Rates
from layertune_studies.config.opponents import (
    AutoRGNMethod,
    DAdaptMethod,
    GradualUnfreezingMethod,
    L2SPMethod,
    LastThenAll,
    LDoGMethod,
    LPFTMethod,
    OptimizerMethod,
    ProdigyMethod,
    ProdigySplitMethod,
    ScheduleFreeMethod,
    TwoParts,
)
from layertune_studies.config.section import Fraction, Positive, Section, nearest, new_key

__all__ = [
    "METHOD_KINDS",
    "AlchemyMethod",
    "AutoLRMethod",
    "AutoRGNMethod",
    "BiDirectionalMethod",
    "DAdaptMethod",
    "Decay",
    "Flat",
    "GradualUnfreezingMethod",
    "InverseSizeMethod",
    "L2SPMethod",
    "LDoGMethod",
    "LPFTMethod",
    "Last",
    "LastThenAll",
    "LayerMethod",
    "LayerWiseMethod",
    "Loop",
    "MetaLRMethod",
    "Method",
    "MethodConfig",
    "NormOnly",
    "OptimizerMethod",
    "ProdigyMethod",
    "ProdigySplitMethod",
    "Rates",
    "ScheduleFreeMethod",
    "Scratch",
    "Section",
    "TwoParts",
    "UNet",
    "Untuned",
]

DEFAULTS = MetaLRSettings()


class AutoLRMethod(Method):
    """AutoLR (Ro and Choi 2021): rates by trial and error within each epoch.

    Attributes:
        threshold: Sorting quality that a trial must reach in the first epoch.
        f_min: Factor of the smallest target. The target variations of the first epoch go up from ``f_min`` times the
            smallest measured variation of a layer.
        f_max: Factor of the largest target. They end at ``f_max`` times the largest measured variation.
        max_trials: The largest number of trials of one epoch.
    """

    kind: Literal["autolr"]
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.94
    f_min: Positive = 2.0
    f_max: Positive = 0.4
    max_trials: Annotated[int, Field(ge=1)] = 5


class AlchemyMethod(Method):
    """Network Alchemy: identification, modification, maximisation (thesis sec. 3.2.2).

    Attributes:
        identification: Share of the steps in which the norms alone are trained. With 0 the gammas are judged as they
            are.
        modification: Whether redundant kernels are initialised again.
        threshold: A kernel is redundant if its gamma is below this number; 0.05 if there is no quantile either.
        quantile: Share of the kernels that are redundant, in place of a threshold.
        penalty: Weight of the BNScale regularisation, lambda.
        head: Whether the last layer is trained in the identification too.
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
    if rule not in RULE_NAMES:
        raise ValueError(f"{rule!r} is no rule{nearest(rule, RULE_NAMES)}; there are {', '.join(RULE_NAMES)}")
    return rule


class MetaLRMethod(Method):
    """Learning rates that are learned from meta batches (MetaLR).

    Attributes:
        mode: ``"exact"``, ``"every"`` (each ``every``-th step) or ``"streaming"``.
        every: Number of steps between two meta passes in the mode ``"every"``.
        rule: How a rate follows its meta gradient, a rule of ``layertune.MetaLR``.
        start: What the first step of the rule ``"free"`` follows: ``"weights"``, or ``"lr"``, the rate of the trial.
        hyper_lr: Step size of the learning rates; by default the one that suits the rule.
        min_lr: The smallest learned rate; by default 0 for the rule ``"free"``, and 1e-6 for the others.
        max_lr: The largest learned rate, above ``min_lr``; by default there is none.
        max_change: The largest factor, up or down, of one adaptation; ``.inf`` for no limit.
    """

    loops: ClassVar[tuple[Loop, ...]] = LOOPS
    kind: Literal["metalr"]
    mode: Literal["exact", "every", "streaming"] = "exact"
    every: Annotated[int, Field(ge=2)] = 10
    rule: Annotated[str, AfterValidator(_known_rule)] = DEFAULTS.rule
    start: Literal["weights", "lr"] = new_key("weights")
    hyper_lr: Annotated[float, Field(ge=0)]
    min_lr: Annotated[float, Field(ge=0)]
    max_lr: Positive | None = DEFAULTS.max_lr
    max_change: Annotated[float, Field(gt=1, allow_inf_nan=True)] = DEFAULTS.max_change

    @model_validator(mode="before")
    @classmethod
    def _write_defaults(cls, values: Any) -> Any:
        """Write the default number down, since it is part of a trial's identity and may differ in a later version."""
        if not isinstance(values, Mapping):
            return values
        rule, hyper_lr = values.get("rule"), values.get("hyper_lr")
        if hyper_lr is None:
            hyper_lr = MetaLRSettings.given(rule=rule).hyper_lr
        return {"min_lr": MetaLRSettings.given(rule=rule, hyper_lr=0.0).min_lr, **values, "hyper_lr": hyper_lr}

    @model_validator(mode="after")
    def _floor_below_ceiling(self) -> "MetaLRMethod":
        if self.max_lr is not None and self.max_lr <= self.min_lr:
            raise ValueError(f"max_lr is {self.max_lr:g}, and has to be above min_lr, {self.min_lr:g}")
        return self

    def learner_options(self) -> dict[str, Any]:
        """Return the arguments of ``layertune.MetaLR``."""
        options = self.model_dump(include={"hyper_lr", "rule", "start", "min_lr", "max_lr", "max_change"})
        every = self.every if self.mode == "every" else 1
        return {**options, "every": every, "streaming": self.mode == "streaming"}

    @property
    def name(self) -> str:
        """The name of the method in tables."""
        return self.title or f"metalr-{self.mode}-{self.rule}"


MethodConfig: TypeAlias = Annotated[
    Untuned
    | Flat
    | Scratch
    | Last
    | LayerWiseMethod
    | BiDirectionalMethod
    | Decay
    | InverseSizeMethod
    | LastThenAll
    | LPFTMethod
    | GradualUnfreezingMethod
    | UNet
    | AutoLRMethod
    | AutoRGNMethod
    | L2SPMethod
    | ProdigyMethod
    | ProdigySplitMethod
    | LDoGMethod
    | ScheduleFreeMethod
    | DAdaptMethod
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
    "inverse_size": InverseSizeMethod,
    "last-then-all": LastThenAll,
    "lp_ft": LPFTMethod,
    "gradual_unfreezing": GradualUnfreezingMethod,
    "unet": UNet,
    "autolr": AutoLRMethod,
    "auto_rgn": AutoRGNMethod,
    "l2_sp": L2SPMethod,
    "prodigy": ProdigyMethod,
    "prodigy_split": ProdigySplitMethod,
    "ldog": LDoGMethod,
    "schedulefree_adamw": ScheduleFreeMethod,
    "dadapt_adam": DAdaptMethod,
    "norm-only": NormOnly,
    "alchemy": AlchemyMethod,
    "metalr": MetaLRMethod,
}
