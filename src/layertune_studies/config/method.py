"""The settings that all methods of a study have, and the training loops."""

from typing import Any, ClassVar, Literal, TypeAlias

from layertune.policies.by_name import method_name
from layertune_studies.config.section import Count, Positive, Section, Several, new_key

__all__ = ["LOOPS", "Loop", "Method", "Rates"]

Rates: TypeAlias = Several[Positive]
Loop: TypeAlias = Literal["torch", "lightning", "nnunet"]
LOOPS: tuple[Loop, ...] = ("torch", "lightning", "nnunet")


class Method(Section):
    """The settings that all methods have.

    Attributes:
        loops: The loops that can train by the method.
        kind: The kind of the method.
        title: The name of the method in tables; two methods of one kind need different titles. By default the kind.
        lr: The learning rates to choose from: ``"grid"`` (those of the study), ``"tuned"`` (the one that the method
            ``flat`` chose on the same seed and labelled cases) or a list.
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
        """Whether the method learns its rates from meta batches. If not, it is a baseline."""
        return self.learner_options() is not None

    @property
    def finds_rate(self) -> bool:
        """Whether the rate that the method chooses is the tuned one of the study."""
        return False

    def learner_options(self) -> dict[str, Any] | None:
        """Return the arguments of ``layertune.MetaLR``, or None if the method learns no rates."""
        return None
