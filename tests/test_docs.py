"""The README and the pages of docs/ say what is true: each Python block runs, each command exists."""

import importlib
import re
from pathlib import Path

import pytest

import layertune
from layertune import plots

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "api.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# An opening fence with its language and options, the text, and the closing fence of the same kind.
FENCED = re.compile(r"^(?P<fence>```+|~~~+)[ ]*(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=fence)[ ]*$", re.M | re.S)


def code_blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a language, each with the number of the line before its first."""
    text = page.read_text(encoding="utf-8")
    found = [match for match in FENCED.finditer(text) if match["language"] == language]
    return [(text.count("\n", 0, match.start("text")), match["text"]) for match in found]


def pages_with(language: str) -> list[object]:
    return [
        pytest.param(page, id=str(page.relative_to(ROOT)))
        for page in PAGES
        if page.is_file() and code_blocks(page, language)
    ]


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_blocks_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    for lines_before, text in code_blocks(page, "python"):
        # The empty lines make a traceback point to the line of the page.
        exec(compile("\n" * lines_before + text, str(page), "exec"), namespace)


def test_no_python_block_hides_behind_a_fence_that_is_not_found() -> None:
    """Indented fences, and other spellings of the language, would be skipped in silence."""
    for page in PAGES:
        opened = re.findall(
            r"^\s*(?:```+|~~~+)\s*\{?\.?(?:python|py|pycon|python3)\b", page.read_text("utf-8"), re.M | re.I
        )
        assert len(opened) == len(code_blocks(page, "python")), page.name


def test_the_readme_shows_metalr_in_a_loop() -> None:
    blocks = [text for _, text in code_blocks(ROOT / "README.md", "python")]
    (loop,) = [text for text in blocks if "metalr.adapt()" in text]
    # "A loop of about a dozen lines" is the promise of the first page.
    assert len([line for line in loop.splitlines() if line.strip()]) <= 14


def test_the_reference_names_every_public_name_once() -> None:
    named = re.findall(r"^::: layertune\.(\w+)$", REFERENCE.read_text(encoding="utf-8"), re.M)
    assert sorted(named) == sorted(layertune.__all__)


@pytest.mark.parametrize("package", ["layertune_timm", "layertune_lightning", "layertune_monai"])
def test_the_reference_names_what_a_plug_in_offers(package: str) -> None:
    named = re.findall(rf"^::: {package}\.(\w+)$", REFERENCE.read_text(encoding="utf-8"), re.M)
    assert sorted([*named, "PLUGIN"]) == sorted(importlib.import_module(package).__all__)


def test_the_reference_names_the_plots() -> None:
    named = re.findall(r"^::: layertune\.plots\.(\w+)$", REFERENCE.read_text(encoding="utf-8"), re.M)
    assert sorted(named) == sorted(plots.__all__)
