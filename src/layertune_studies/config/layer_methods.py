"""The methods of a study that differ in the layers that they train."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from layertune_studies.config.method import LOOPS, Loop, Method, Rates
from layertune_studies.config.section import Several, new_key

__all__ = [
    "BiDirectionalMethod",
    "Decay",
    "Flat",
    "Last",
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
    """The layers of depths k to d, where several k are tried.

    Attributes:
        first: The values of k; by default all, from d downwards.
    """

    loops: ClassVar[tuple[Loop, ...]] = LOOPS
    kind: Literal["layer-wise"]
    first: Several[int] | None = None


class BiDirectionalMethod(Method):
    """All layers but those of depths m to n, where several pairs (m, n) are tried.

    Attributes:
        depth: How depths are read, ``"I1"`` or ``"I2"``; by default as the study reads them. It needs ``settings``.
        settings: The pairs (m, n); by default all d(d-1)/2.
        search: ``"grid"``: all pairs are trained with the whole budget; ``"halving"``: successive halving, which takes
            a fifth of the passes.
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
    """Learning rates that fall from the head to the first layer, by one factor per layer.

    Attributes:
        rates: The factors to choose from.
    """

    kind: Literal["layer-decay"]
    rates: Several[Annotated[float, Field(gt=0, le=1)]] = (0.75,)


class UNet(Method):
    """One part of a U-Net (Amiri et al. 2020).

    Attributes:
        schemes: The parts to choose from: ``"contracting"``, ``"expanding"``, or ``"top-down"`` and ``"bottom-up"``
            with the number of levels, as in ``top-down-2``; by default all.
    """

    loops: ClassVar[tuple[Loop, ...]] = LOOPS
    kind: Literal["unet"]
    schemes: Several[str] | None = None


class NormOnly(Method):
    """The normalisation layers alone (Network Alchemy, tab. 4.3).

    Attributes:
        head: Whether the last layer is trained too.
    """

    kind: Literal["norm-only"]
    head: bool = False
