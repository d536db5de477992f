"""The rule by which a run goes on whose state was saved under another rule."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from layertune.metalr.settings import FREE_HYPER_LR, MetaLRSettings

__all__ = ["FREE_KEYS", "RULE", "STATE", "resumed_settings"]

RULE = "meta_rule"
"""The key in the first param group under which the name of a correcting rule is saved."""
STATE = "meta_free"
"""The key in the first param group under which the numbers of the rule ``"free"`` are saved."""
FREE_KEYS = (STATE, "meta_average", "meta_due")
"""All entries that the rule ``"free"`` writes into param groups, beside those that all rules have."""


def resumed_settings(settings: MetaLRSettings, group: Mapping[str, Any]) -> MetaLRSettings:
    """Return the settings to go on with, so that a run that began under an older rule keeps it.

    Args:
        settings: The settings of the ``MetaLR`` that goes on.
        group: The first param group, with what was learned.

    Returns:
        The settings as they are; or with the rule of the saved run, where the rule ``"free"`` would have to go on from
        the factors of another rule, which it cannot read.

    Warns:
        UserWarning: The rule is replaced.
    """
    if settings.rule != "free" or STATE in group or "meta_scale" not in group:
        return settings
    rule = group.get(RULE, settings.rule_of_0_1)
    warnings.warn(
        f"this run began under the rule {rule}, so it goes on under it; give rule={rule!r} to say so yourself, or "
        'start from a state without the keys meta_* in its param groups to learn by the rule "free"',
        UserWarning,
        stacklevel=4,
    )
    # The defaults of the rule "free" are no choice of the user, so the old rule has its own.
    return replace(
        settings,
        rule=rule,
        hyper_lr=None if settings.eta == FREE_HYPER_LR else settings.eta,
        min_lr=settings.lowest_lr or None,
    )
