"""The report of a run: its file names, its figure, and the one warning where it cannot be written."""

from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from layertune import LRProfile
from layertune.hosts.report import FIGURE, PROFILE, draw_figure, write_figure, write_report


def profile(rate: float = 1e-2) -> LRProfile:
    return LRProfile(("stem", "head"), (1, 2), (1, 2), [[1.0, 1.0], [2.0, 1.0]], [[rate, rate], [2 * rate, rate]])


def test_a_report_is_a_profile_and_a_figure_with_the_same_names_in_every_host(tmp_path: Path) -> None:
    assert write_report(profile(), tmp_path / "run" / "results")
    written = {file.name: file for file in (tmp_path / "run" / "results").iterdir()}
    assert sorted(written) == ["learned_rates.json", "learned_rates.png"] == [PROFILE, FIGURE]
    assert LRProfile.load(written[PROFILE]) == profile()
    assert written[FIGURE].read_bytes().startswith(b"\x89PNG")


def test_rates_that_cannot_be_drawn_are_saved_with_one_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no figure of the learned rates was drawn: .*no .* rate above 0") as seen:
        assert not write_report(profile(0.0), tmp_path)
    assert len(seen) == 1
    assert [file.name for file in tmp_path.iterdir()] == [PROFILE]


def test_a_folder_that_cannot_be_made_gives_one_warning_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    told: list[str] = []
    assert not write_report(profile(), tmp_path / "taken", warn=told.append)
    assert len(told) == 1
    assert f"were not written to {tmp_path / 'taken'}" in told[0]


def test_a_figure_alone_takes_any_format_and_a_new_folder(tmp_path: Path) -> None:
    assert write_figure(profile(), tmp_path / "figures" / "rates.svg")
    assert "<svg" in (tmp_path / "figures" / "rates.svg").read_text()


def test_the_style_that_a_host_sets_does_not_reach_the_figure_and_stays_set() -> None:
    figures: list[Figure] = []
    with mpl.rc_context({"axes.facecolor": "black", "font.size": 25}):
        assert draw_figure(profile(), figures.append)
        assert mpl.rcParams["font.size"] == 25
    (figure,) = figures
    assert all(axes.get_facecolor() == (1.0, 1.0, 1.0, 1.0) for axes in figure.axes)
