"""The methods of a study that come from other papers and packages, to compare learned rates with."""

from typing import Annotated, Any, Literal

from pydantic import Field

from layertune.policies.l2_sp import ALPHA, BETA
from layertune.rates.auto_rgn import BATCHES
from layertune_studies.config.method import Method, Rates
from layertune_studies.config.section import Count, Fraction, Positive, Several, new_key

__all__ = [
    "AutoRGNMethod",
    "DAdaptMethod",
    "GradualUnfreezingMethod",
    "L2SPMethod",
    "LDoGMethod",
    "LPFTMethod",
    "LastThenAll",
    "OptimizerMethod",
    "ProdigyMethod",
    "ProdigySplitMethod",
    "ScheduleFreeMethod",
    "TwoParts",
]


class TwoParts(Method):
    """First the last layer alone, then all layers.

    Attributes:
        share: Share of the steps in which the last layer alone is trained.
        drop: Factor on the learning rate for the second part.
    """

    share: Fraction = 0.3
    drop: Positive = 0.1


class LastThenAll(TwoParts):
    """First the last layer alone, then all layers."""

    kind: Literal["last-then-all"]


class LPFTMethod(TwoParts):
    """LP-FT (Kumar et al. 2022): linear probing on features that are frozen with their statistics, then all layers."""

    kind: Literal["lp_ft"]
    share: Fraction = 0.5


class GradualUnfreezingMethod(Method):
    """Gradual unfreezing (Howard and Ruder 2018): the last layer, and one depth more in each phase.

    Attributes:
        phase: Steps of a phase. By default an epoch, or fewer steps if the last of d phases would get less than 1/d of
            all steps.
    """

    kind: Literal["gradual_unfreezing"]
    phase: Count | None = None


class AutoRGNMethod(Method):
    """Auto-RGN (Lee et al. 2023): rates in proportion to relative gradient norms.

    Attributes:
        batches: Number of training gradients that are averaged.
    """

    kind: Literal["auto_rgn"]
    batches: Count = BATCHES


class L2SPMethod(Method):
    """L2-SP (Li et al. 2018): a penalty towards the pre-trained weights, in place of the study's weight decay.

    Attributes:
        alphas: The weights of the pull towards the pre-trained weights to choose from.
        beta: Weight of the decay of the head.
    """

    kind: Literal["l2_sp"]
    alphas: Several[Positive] = (ALPHA,)
    beta: Annotated[float, Field(ge=0)] = BETA


class OptimizerMethod(Method):
    """An optimizer of ``layertune.make_optimizer``, whose name is the kind."""

    def options(self) -> dict[str, Any]:
        """Return the options of the optimizer that the study's file gives."""
        return {}


class ProdigyMethod(OptimizerMethod):
    """Prodigy (Mishchenko and Defazio 2024), which needs no learning rate.

    Attributes:
        safeguard_warmup: Whether Prodigy guards its estimate against a warm-up, which the schedule one-cycle has.
    """

    kind: Literal["prodigy"]
    lr: Literal["grid", "tuned"] | Rates = (1.0,)
    safeguard_warmup: bool = new_key(False)

    def options(self) -> dict[str, Any]:
        """Return the options of the optimizer that the study's file gives."""
        return {"safeguard_warmup": self.safeguard_warmup}


class ProdigySplitMethod(OptimizerMethod):
    """Prodigy with one estimate for each layer.

    Attributes:
        safeguard_warmup: Whether Prodigy guards its estimate against a warm-up, which the schedule one-cycle has.
    """

    kind: Literal["prodigy_split"]
    lr: Literal["grid", "tuned"] | Rates = (1.0,)
    safeguard_warmup: bool = False

    def options(self) -> dict[str, Any]:
        """Return the options of the optimizer that the study's file gives."""
        return {"safeguard_warmup": self.safeguard_warmup}


class LDoGMethod(OptimizerMethod):
    """L-DoG (Ivgi et al. 2023), without a schedule, evaluated at the average of its weights.

    Attributes:
        reps_rel: Size of the first step. By default 1e-4 in networks with batch norm and 1e-6 in others.
        average: Whether the average of the weights is evaluated, as its authors ask for.
    """

    kind: Literal["ldog"]
    lr: Literal["grid", "tuned"] | Rates = (1.0,)
    reps_rel: Positive | None = None
    average: bool = True

    def options(self) -> dict[str, Any]:
        """Return the options of the optimizer that the study's file gives."""
        return {} if self.reps_rel is None else {"reps_rel": self.reps_rel}


class ScheduleFreeMethod(OptimizerMethod):
    """Schedule-free AdamW (Defazio et al. 2024), which needs a learning rate and no schedule.

    Attributes:
        warmup: Share of the steps in which the learning rate rises.
        beta: The momentum, between the average (1) and the last weights (0).
    """

    kind: Literal["schedulefree_adamw"]
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    beta: Fraction = 0.9

    def options(self) -> dict[str, Any]:
        """Return the options of the optimizer that the study's file gives."""
        return {"betas": (self.beta, 0.999)}


class DAdaptMethod(OptimizerMethod):
    """Adam with D-Adaptation (Defazio and Mishchenko 2023), which needs no learning rate; it decays as AdamW does."""

    kind: Literal["dadapt_adam"]
    lr: Literal["grid", "tuned"] | Rates = (1.0,)

    def options(self) -> dict[str, Any]:
        """Return the options of the optimizer that the study's file gives."""
        return {"decouple": True}
