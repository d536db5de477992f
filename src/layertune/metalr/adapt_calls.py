"""Notice a training loop that never calls ``MetaLR.adapt``, or calls it without need, and tell its author."""

import warnings
from typing import Never

from layertune.errors import OptimizerError
from layertune.metalr.settings import MetaLRSettings

__all__ = ["AdaptCalls", "refuse_streaming_call"]

MOST_LOST = 3  # one step may be lost to an evaluation or an interrupted cell of a notebook

WHAT_TO_DO = (
    "after optimizer.step() call optimizer.zero_grad(), backward on the loss of a meta batch, and adapt(); or attach "
    "with MetaLR(optimizer, streaming=True), which needs no call"
)


class AdaptCalls:
    """Keep in mind whether ``adapt()`` was called, and warn once if measured steps are overwritten without it.

    Attributes:
        called: Whether this ``MetaLR`` has adapted at least once.
    """

    def __init__(self) -> None:
        self.called = False
        self._lost = 0

    def lose_step(self, settings: MetaLRSettings) -> None:
        """Note that the next step overwrites one that waits for ``adapt()``, and warn of the third.

        Args:
            settings: The settings of MetaLR. There is no warning if they learn nothing, with a step size of 0.

        Warns:
            UserWarning: Three steps were overwritten and ``adapt()`` was never called.
        """
        self._lost += 1
        if not self.called and settings.eta and self._lost == MOST_LOST:
            warnings.warn(
                f"MetaLR learns nothing, because adapt() was not called after any of {self._lost} steps; {WHAT_TO_DO}",
                UserWarning,
                # The caller of optimizer.step(), behind the hook's four frames and the wrappers of torch.
                stacklevel=8,
            )

    def explain_missing_profile(self, settings: MetaLRSettings, steps: int) -> Never:
        """Raise an error that says why there is no profile.

        Args:
            settings: The settings of MetaLR.
            steps: The number of optimizer steps so far.

        Raises:
            OptimizerError: Always. The message names a missing ``adapt()``, or the number of steps to train.
        """
        if not settings.streaming and not self.called and steps >= settings.every:
            raise OptimizerError(
                f"there is no profile: adapt() was never called in {steps} steps, so nothing was learned; {WHAT_TO_DO}"
            )
        needed = settings.every + settings.streaming  # streaming learns from a step when the next one begins
        raise OptimizerError(
            f"there is no profile before the first adaptation; train at least {needed} step{'s' * (needed > 1)}"
        )


def refuse_streaming_call() -> Never:
    """Refuse a call of ``adapt()`` in streaming mode: the gradients may be those that the step was made with.

    Raises:
        OptimizerError: Always. The message says what to remove.
    """
    raise OptimizerError(
        "adapt() is not needed with streaming=True, where MetaLR learns from the gradient of the next training batch; "
        "remove the meta pass and adapt() from the loop, or attach MetaLR without streaming=True"
    )
