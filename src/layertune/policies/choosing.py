"""Choose among a few candidates by held-out loss, by successive halving, at the cost of two trainings."""

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from layertune.errors import PolicyError

__all__ = ["Choice", "Round", "Score", "choose", "halving", "leaders"]

T = TypeVar("T")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Round:
    """A round of successive halving.

    Attributes:
        count: The number of candidates that are trained in the round.
        share: The part of a whole training that each of them gets, in (0, 1].
    """

    count: int
    share: float


@dataclass(frozen=True)
class Score:
    """The held-out loss of a candidate in one round.

    Attributes:
        name: The name of the candidate.
        share: The part of a whole training that it was trained for.
        loss: Its held-out loss after that. NaN and infinity stand for a training that diverged.
    """

    name: str
    share: float
    loss: float


@dataclass(frozen=True)
class Choice(Generic[T]):
    """The outcome of ``choose``.

    Attributes:
        name: The name of the chosen candidate.
        candidate: The chosen candidate.
        scores: The score of each candidate in each round, in the order in which they were measured.
    """

    name: str
    candidate: T
    scores: tuple[Score, ...]

    @property
    def passes(self) -> float:
        """The cost of the search, in whole trainings."""
        return sum(score.share for score in self.scores)


def choose(
    candidates: Mapping[str, T],
    evaluate: Callable[[T, float], float],
    *,
    passes: float = 2.0,
    shortest: float = 0.5,
) -> Choice[T]:
    """Choose one of a few candidates by held-out loss, by successive halving (Jamieson and Talwalkar, AISTATS 2016).

    Every round has an equal part of ``passes``, which the candidates that are left share. The better ones get to the
    next round. Short trainings may rank candidates the wrong way round, since a learned rate has to be found first. So
    there are several rounds only where the first one trains each candidate for at least the share ``shortest``. At the
    defaults three candidates are trained for two thirds of a training each, in one round. With the final training of
    the chosen one that makes three trainings.

    Use it for candidates that need no search for a rate, for instance policies with a learned factor on all rates. The
    held-out cases must not be test cases. Of few labelled cases hold one out, and train the final network on all of
    them.

    Args:
        candidates: At least two candidates by name. Of candidates with equal losses the earlier one is better.
        evaluate: Trains a fresh copy of the network with a candidate for a share of a whole training, and returns the
            loss on held-out cases. It is called as ``evaluate(candidate, share)`` with a share in (0, 1]. Let the
            schedule of the learning rate end with the share: the loss in the middle of a schedule says little about its
            end.
        passes: The cost of all trainings of the search together, in whole trainings, > 0. No candidate is trained for
            more than one whole training, so few candidates may cost less.
        shortest: The smallest share at which the loss is trusted where several rounds are possible, in [0, 1]. 0 always
            makes all rounds.

    Returns:
        The chosen candidate, with all scores.

    Raises:
        PolicyError: There are fewer than two candidates, ``passes`` or ``shortest`` is out of range, ``evaluate``
            returns no number, or no training of a round ends with a finite loss.

    Example:
        >>> from layertune import InverseSize
        >>> policies = {str(exponent): InverseSize(exponent) for exponent in (0, 0.5, 1)}
        >>> losses = {"0": 0.7, "0.5": 0.4, "1": 0.5}  # in place of trainings
        >>> names = {policy: name for name, policy in policies.items()}
        >>> choice = choose(policies, lambda policy, share: losses[names[policy]])
        >>> choice.name, choice.passes
        ('0.5', 2.0)
        >>> [(score.name, round(score.share, 2)) for score in choice.scores]
        [('0', 0.67), ('0.5', 0.67), ('1', 0.67)]
    """
    if not isinstance(candidates, Mapping):
        raise PolicyError(
            f"candidates have names, as in {{'0': InverseSize(0), '1': InverseSize(1)}}; this is a "
            f"{type(candidates).__name__}"
        )
    scores: list[Score] = []
    left = list(candidates)
    for stage in halving(len(left), passes=passes, shortest=shortest):
        names = [name for name in candidates if name in left[: stage.count]]
        losses = {name: _loss(name, evaluate(candidates[name], stage.share)) for name in names}
        scores += [Score(name, stage.share, loss) for name, loss in losses.items()]
        left = leaders(losses, len(losses))
    return Choice(left[0], candidates[left[0]], tuple(scores))


def halving(count: int, *, passes: float = 2.0, shortest: float = 0.5) -> list[Round]:
    """Return the rounds of successive halving, each of which gets an equal share of the passes.

    Args:
        count: The number of candidates, at least 2.
        passes: The cost of all trainings together, in whole trainings, > 0.
        shortest: The smallest share of the first round where there are several, in [0, 1].

    Returns:
        The rounds, as many as ``shortest`` allows. All but the first have the half, the quarter and so on of the
        candidates, and of several rounds the last one has two. The best candidate of the last round is chosen.

    Raises:
        PolicyError: There are fewer than two candidates, or ``passes`` or ``shortest`` is out of range.

    Example:
        >>> halving(4, passes=2, shortest=0)
        [Round(count=4, share=0.25), Round(count=2, share=0.5)]
        >>> halving(4, passes=2)
        [Round(count=4, share=0.5)]
    """
    if count < 2:
        raise PolicyError(f"a choice needs at least two candidates, not {count}")
    if not 0 < passes < math.inf:
        raise PolicyError(f"passes={passes} is the cost of the search in whole trainings, and must be finite and > 0")
    if not 0 <= shortest <= 1:
        raise PolicyError(f"shortest={shortest} is a share of a training, and must be in [0, 1]")
    counts = [count]
    while counts[-1] > 2:
        counts.append(math.ceil(counts[-1] / 2))
    while len(counts) > 1 and passes / len(counts) / count < shortest:
        del counts[1]  # the last rounds, between the best candidates, stay
    return [Round(number, min(1.0, passes / len(counts) / number)) for number in counts]


def leaders(losses: Mapping[Key, float], count: int) -> list[Key]:
    """Return the candidates with the smallest losses, the best first.

    Args:
        losses: The loss of each candidate. One that is not finite is worse than any other; of equal ones the earlier
            one is better.
        count: The number of candidates to return.

    Raises:
        PolicyError: No loss is finite.

    Example:
        >>> leaders({"a": 0.3, "b": float("nan"), "c": 0.1}, 2)
        ['c', 'a']
    """
    if not any(map(math.isfinite, losses.values())):
        raise PolicyError(
            f"the loss of none of {', '.join(map(str, losses))} is finite, so there is nothing to choose by; lower the "
            "learning rate, or look at the data"
        )
    return sorted(losses, key=lambda key: losses[key] if math.isfinite(losses[key]) else math.inf)[:count]


def _loss(name: str, loss: object) -> float:
    try:
        return float(loss.detach() if isinstance(loss, Tensor) else loss)  # type: ignore[arg-type]  # refused below
    except (TypeError, ValueError, RuntimeError) as error:
        raise PolicyError(
            f"evaluate returned {type(loss).__name__} for candidate {name}; return the held-out loss as one number"
        ) from error
