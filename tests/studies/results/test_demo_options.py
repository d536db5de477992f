from typing import Any

import pytest

from layertune_studies.demo_options import DemoOptions, OptionError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0 and must be at least 1"),
        ({"seed": -1}, "seed is -1"),
        ({"size": (16, 20, 16)}, "multiple of 8"),
        ({"size": (8, 16, 16)}, "at least 16"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        DemoOptions(**options)
