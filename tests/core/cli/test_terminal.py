"""What commands print: plain text for a terminal, valid JSON for a program."""

import json
import math

import pytest
from rich.text import Text

from layertune.cli.terminal import print_json, print_table, show


def test_control_characters_are_shown_and_not_sent(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("title\x1b]0;evil\x07", ["Name"], [["layer\x1b[2J"]], left=1)
    show(Text("norm\x1b[31m: gammas\tof\nblock é"))
    printed = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\x08", "\r"} & set(printed)
    assert "layer\\x1b[2J" in printed
    assert "norm\\x1b[31m: gammas" in printed
    assert "block é" in printed


def test_json_holds_no_number_that_json_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"metric": math.nan, "candidates": [{"loss": math.inf}, {"loss": 0.5}]})

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    read = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert read == {"metric": None, "candidates": [{"loss": None}, {"loss": 0.5}]}
