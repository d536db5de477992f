"""How large the next step is: pure arithmetic on one number a step, without a tensor.

``docs/rule.md`` says in plain words what the rule does, and where each constant comes from.
"""

import math
from dataclasses import dataclass

__all__ = ["FreeRule"]

BIAS = 0.4  # added to the z-score: one-step meta gradients prefer rates that are too small (Wu et al. 2018)
# Where two batches agree much, as in segmentation with few cases, noise does not limit the rate, and single steps show
# even less of what a whole training gains.
AGREEMENT = 0.1  # cosine from which on batches agree much
MORE_BIAS = 4.0  # for each unit of the cosine beyond it
LARGEST_MORE_BIAS = 0.4  # the sum stays below 1, the largest size of a steady z-score
SEARCH = 2.0  # the gain of the first steps, in units of hyper_lr
TURNS = 4  # turns of the direction after which the gain of the search has halved
MEMORY = 0.95  # of the running moments of the cosine
SMOOTHING = 0.5  # of the z-score, where turns are counted
LARGEST_Z = 3.0  # a single outlier moves the factor no further than this
RISE = math.exp(0.3)  # the largest rise of the effective rate in one step, whatever the schedule does
KNOWN = 10  # cosines after which their noise is known
GROSS = 8.0  # standard deviations of the cosine that an overshoot is beyond its mean
CUT = math.exp(-1.0)  # the change of the rate after a gross overshoot


@dataclass
class FreeRule:
    """Hold the rate of a run, in the unit of the optimizer's own ``lr``, and learn it.

    The *level* of the schedule is its present rate over the largest so far, in (0, 1]. The effective rate follows the
    level down. What the schedule rises beyond its largest rate so far does not count: a schedule gives no rate, only
    how the rate falls.

    Attributes:
        log_rate: The logarithm of the learned rate at level 1.
        peak: The largest rate of the schedule so far.
        rate: The effective rate of the last step.
        first_rate: The effective rate of the first step. After a restart of the schedule the rate may rise to this at
            once.
        square: A running mean of the squared cosine.
        mean: A running mean of the cosine.
        count: The number of cosines so far.
        smooth: The smoothed z-score.
        rising: Whether the learned rate rose at last.
        turns: How often it has turned between rising and falling.
        overshoots: How many gross overshoots were taken back.
    """

    log_rate: float
    peak: float
    rate: float
    first_rate: float
    square: float = 0.0
    mean: float = 0.0
    count: int = 0
    smooth: float = 0.0
    rising: bool = True
    turns: int = 0
    overshoots: int = 0

    @classmethod
    def begin(cls, first_rate: float, schedule: float) -> "FreeRule":
        """Begin a run.

        Args:
            first_rate: The effective rate of the first step, > 0.
            schedule: The schedule's rate in the first step, > 0.
        """
        return cls(math.log(first_rate), schedule, first_rate, first_rate)

    def is_gross_overshoot(self, cosine: float) -> bool:
        """Return whether the loss rises along the recent movement by far more than the noise of the cosine.

        The cosine has turned round: it is negative, at least as large as it was positive on average, and 8 standard
        deviations below that average.

        Args:
            cosine: The cosine of the negative gradient and the recent movement, in [-1, 1].
        """
        if self.count < KNOWN or cosine >= 0:
            return False
        seen = 1 - MEMORY**self.count
        mean, square = self.mean / seen, self.square / seen
        deviation = math.sqrt(max(square - mean * mean, 0.0))
        return -cosine > abs(mean) and mean - cosine > GROSS * deviation

    def cut(self) -> None:
        """Lower the rate after a gross overshoot."""
        self.log_rate += math.log(CUT)
        self.overshoots += 1

    def shorten(self, ratio: float, *, max_change: float) -> None:
        """Lower the rate after a step that was made shorter than it asks for, since it would grow without end there.

        Args:
            ratio: The length of the movement that was made over that of the movement that the rate asks for, < 1.
            max_change: The largest factor, up or down.
        """
        self.log_rate += max(math.log(ratio), -math.log(max_change))

    def learn(self, cosine: float, *, gain: float, level: float, max_change: float) -> None:
        """Move the rate by one cosine.

        Args:
            cosine: The cosine of the negative gradient and the recent movement, in [-1, 1].
            gain: The step size of the log of the rate, >= 0, once the order of magnitude is found.
            level: The level of the schedule. The rate is learned in step with it; else it would grow as the schedule
                falls, and undo it.
            max_change: The largest factor, up or down.
        """
        self.count += 1
        seen = 1 - MEMORY**self.count
        self.mean = MEMORY * self.mean + (1 - MEMORY) * cosine
        self.square = MEMORY * self.square + (1 - MEMORY) * cosine * cosine
        if not self.square:
            return
        bias = _bias(math.sqrt(self.square / seen))
        z = max(-LARGEST_Z, min(LARGEST_Z, cosine / math.sqrt(self.square / seen)))
        self.smooth = SMOOTHING * self.smooth + (1 - SMOOTHING) * z
        if (self.smooth + bias > 0) != self.rising:
            self.rising, self.turns = not self.rising, self.turns + 1
        searching = max(1.0, SEARCH / (1 + self.turns / TURNS))
        limit = math.log(max_change)
        self.log_rate += max(-limit, min(limit, gain * searching * (z + bias) * level))

    def level(self, schedule: float) -> float:
        """Return the level of a schedule's rate."""
        return schedule / max(self.peak, schedule)

    def next_rate(self, schedule: float, *, respect: bool) -> float:
        """Return the effective rate of the next step.

        Args:
            schedule: The schedule's rate in this step, > 0.
            respect: Whether the schedule's rate counts as it is. Then a rise of the schedule raises the rate too, after
                it has used up what was learned beyond it.
        """
        if schedule > self.peak:
            if respect:
                learned = self.log_rate - math.log(self.peak)
                used_up = max(learned - math.log(schedule / self.peak), 0.0) if learned > 0 else learned
                self.log_rate = math.log(schedule) + used_up
            self.peak = schedule
        wanted = math.exp(self.log_rate) * self.level(schedule)
        self.rate = min(wanted, RISE * max(self.rate, self.first_rate))
        return self.rate

    def bound(self, lowest: float, highest: float) -> None:
        """Keep the learned rate at level 1 within limits.

        Args:
            lowest: The smallest rate, >= 0.
            highest: The largest rate; infinity sets no limit.
        """
        self.log_rate = min(self.log_rate, math.log(highest))
        if lowest:
            self.log_rate = max(self.log_rate, math.log(lowest))


def _bias(size: float) -> float:
    """Return what is added to the z-score, for cosines of a size."""
    return BIAS + min(LARGEST_MORE_BIAS, MORE_BIAS * max(0.0, size - AGREEMENT))
