"""The studies that come with the project: every table and figure of the papers has its file, and all are understood."""

from pathlib import Path

import pytest

from layertune_studies.config.spelling import KINDS
from layertune_studies.config.study import load_study
from layertune_studies.training.settings import Depths, settings_of

FOLDER = Path(__file__).parents[3] / "configs" / "studies"
FILES = sorted(FOLDER.glob("*.yaml"))
# Figures 1.1, 3.1 and 3.2 of the thesis come from one run.
WANTED = {
    "MetaLR table 2": 3,
    "MetaLR table 3": 2,
    "MetaLR figure 2": 1,
    "MetaLR figures 3 and 4b": 1,
    "MetaLR figure 4a": 1,
    "Network Alchemy tables 4.1 to 4.3": 2,
    "Network Alchemy figures 1.1, 3.1 and 3.2": 2,
    "Network Alchemy tables 4.1 to 4.3 and figures 3.1, 3.2 and 4.1": 1,
    "": 23,
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_study_is_understood(path: Path) -> None:
    study = load_study(path)
    assert study.name == path.stem, "results of two studies would share a folder"
    depths = Depths(d=10, levels=4)
    assert all(settings_of(method, depths) for method in study.methods)


def test_every_table_and_figure_has_its_file() -> None:
    papers = [load_study(path).paper for path in FILES]
    assert {paper: papers.count(paper) for paper in set(papers)} == WANTED


def test_the_45_settings_of_figure_3a() -> None:
    study = load_study(FOLDER / "metalr_figure3_pocus.yaml")
    (method,) = (method for method in study.methods if method.kind == "bi-directional")
    assert len(settings_of(method, Depths(d=10, levels=5))) == 45


@pytest.mark.parametrize("name", ["metalr_table2_pocus", "metalr_table2_busi", "metalr_table2_chest_xray"])
def test_table_2_has_the_papers_rows_and_todays_baselines(name: str) -> None:
    study = load_study(FOLDER / f"{name}.yaml")
    kinds = {method.kind for method in study.methods}
    assert kinds >= {"last", "flat", "layer-wise", "autolr", "bi-directional", "metalr"}
    assert kinds >= {"layer-decay", "last-then-all", "prodigy"}
    assert (study.budget.unit, study.seeds, study.optimizer.head_factor) == ("passes", 5, 10)


@pytest.mark.parametrize(("page", "name"), [("studies", "my_study"), ("opponents", "opponents")])
def test_the_example_of_the_documentation_is_understood(tmp_path: Path, page: str, name: str) -> None:
    text = (FOLDER.parents[1] / "docs" / f"{page}.md").read_text(encoding="utf-8")
    (tmp_path / "study.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    assert load_study(tmp_path / "study.yaml").name == name


def test_the_documentation_lists_every_method() -> None:
    page = (FOLDER.parents[1] / "docs" / "studies.md").read_text(encoding="utf-8")
    assert {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")} == set(KINDS)
