"""The methods of a study that differ in the layers that they train."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from layertune.metalr.settings import MetaLRSettings
from layertune.policies.by_name import method_name
from layertune_studies.config.method import LOOPS, Loop, Method, Rates
from layertune_studies.config.section import Several, new_key

__all__ = [
    "BiDirectionalMethod",
    "Decay",
    "Flat",
    "InverseSizeMethod",
    "Last",
    "LayerMethod",
    "LayerWiseMethod",
    "NormOnly",
    "Scratch",
    "UNet",
    "Untuned",
]


class Untuned(Method):
    """The pre-trained network as it is, without any fine-tuning."""

    kind: Literal["untuned"]
    lr: Literal["grid", "tuned"] | Rates = (1.0,)
    loops: ClassVar[tuple[Loop, ...]] = LOOPS


class LayerMethod(Method):
    """A method that says which layers are trained, and at which ratios of their rates.

    Attributes:
        rate: ``"tuned"``: the rates of ``lr`` are tried; ``"learned"``: one factor on all rates is learned in the
            training by MetaLR's default rule in its streaming mode, so ``lr`` may be left out.
    """

    rate: Literal["tuned", "learned"] = new_key("tuned")

    @model_validator(mode="before")
    @classmethod
    def _learned_needs_no_lr(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("rate") == "learned":
            return {"lr": (1.0,), **given}
        return given

    @model_validator(mode="after")
    def _learned_tries_no_lrs(self) -> "LayerMethod":
        if self.rate == "learned" and isinstance(self.lr, str):
            raise ValueError(f"a learned rate has no lr {self.lr} to choose from; leave lr out")
        return self

    @property
    def name(self) -> str:
        """The name of the method in tables."""
        return self.title or method_name(self.kind) + ("-learned" if self.rate == "learned" else "")

    def learner_options(self) -> dict[str, Any] | None:
        """Return the arguments of ``layertune.MetaLR``, or None if the method learns no rates."""
        usual = MetaLRSettings(streaming=True)
        options = {"rule": usual.rule, "hyper_lr": usual.eta, "streaming": True}
        return options if self.rate == "learned" else None


class Searched(LayerMethod):
    """A method whose settings can be searched.

    Attributes:
        search: ``"grid"``: all settings are trained with the whole budget; ``"halving"``: successive halving.
    """

    search: Literal["grid", "halving"] = "grid"

    @model_validator(mode="after")
    def _halving_divides_the_budget(self) -> "Searched":
        if self.search == "halving" and self.amount is not None:
            raise ValueError("search halving divides the budget of the study; leave amount out")
        return self


class Flat(LayerMethod):
    """All layers at one rate."""

    loops: ClassVar[tuple[Loop, ...]] = LOOPS
    kind: Literal["flat"]

    @property
    def finds_rate(self) -> bool:
        """Whether the rate that the method chooses is the tuned one of the study."""
        return self.lr != "tuned" and self.rate == "tuned"


class Scratch(LayerMethod):
    """All layers at one rate, from random weights."""

    loops: ClassVar[tuple[Loop, ...]] = LOOPS
    kind: Literal["scratch"]


class Last(LayerMethod):
    """The last layer alone."""

    loops: ClassVar[tuple[Loop, ...]] = LOOPS
    kind: Literal["last"]


class LayerWiseMethod(LayerMethod):
    """The layers of depths k to d, where several k are tried.

    Attributes:
        first: The values of k; by default all, from d downwards.
    """

    loops: ClassVar[tuple[Loop, ...]] = LOOPS
    kind: Literal["layer-wise"]
    first: Several[int] | None = None


class BiDirectionalMethod(Searched):
    """All layers but those of depths m to n, where several pairs (m, n) are tried.

    Attributes:
        depth: How depths are read, ``"I1"`` or ``"I2"``; by default as the study reads them. It needs ``settings``.
        settings: The pairs (m, n); by default all d(d-1)/2. The search ``"halving"`` takes a fifth of the passes.
    """

    loops: ClassVar[tuple[Loop, ...]] = LOOPS
    kind: Literal["bi-directional"]
    settings: Several[tuple[int, int]] | None = None
    depth: Literal["I1", "I2"] | None = new_key(None)

    @model_validator(mode="after")
    def _depth_has_settings(self) -> "BiDirectionalMethod":
        if self.depth is not None and self.settings is None:
            raise ValueError("a method with a depth of its own needs settings; give pairs (m, n)")
        return self


class Decay(LayerMethod):
    """Learning rates that fall from the head to the first layer, by one factor per layer.

    Attributes:
        rates: The factors to choose from.
    """

    loops: ClassVar[tuple[Loop, ...]] = ("torch", "lightning")
    kind: Literal["layer-decay"]
    rates: Several[Annotated[float, Field(gt=0, le=1)]] = (0.75,)


class InverseSizeMethod(Searched):
    """Learning rates in proportion to (number of a layer's weights) ** -exponent.

    Attributes:
        exponents: The exponents to choose from. The search ``"halving"`` takes the passes of at most three trainings.
    """

    loops: ClassVar[tuple[Loop, ...]] = ("torch", "lightning")
    kind: Literal["inverse_size"]
    exponents: Several[Annotated[float, Field(ge=0)]] = (0.0, 0.5, 1.0)


class UNet(LayerMethod):
    """One part of a U-Net (Amiri et al. 2020).

    Attributes:
        schemes: The parts to choose from: ``"contracting"``, ``"expanding"``, or ``"top-down"`` and ``"bottom-up"``
            with the number of levels, as in ``top-down-2``; by default all.
    """

    loops: ClassVar[tuple[Loop, ...]] = LOOPS
    kind: Literal["unet"]
    schemes: Several[str] | None = None


class NormOnly(LayerMethod):
    """The normalisation layers alone (Network Alchemy, tab. 4.3).

    Attributes:
        head: Whether the last layer is trained too.
    """

    kind: Literal["norm-only"]
    head: bool = False
