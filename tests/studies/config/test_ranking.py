"""The file of a ranking, and what is said of its mistakes."""

from pathlib import Path

import pytest

from layertune_studies.config.ranking import load_rank_study
from layertune_studies.errors import StudyError


def test_an_unknown_task_of_a_ranking_is_named_after_the_path_alone(tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text("{network: UNet, task: stripes, budget: 1}")
    with pytest.raises(StudyError, match=r"task\.yaml: .*task 'stripes' is neither") as caught:
        load_rank_study(path)
    assert "the file" not in str(caught.value)
