"""Wrong names in a study are found before any data are read."""

from pathlib import Path
from typing import Any

import pytest

from layertune.errors import LayertuneError
from layertune_studies.config.study import Study
from layertune_studies.engine import context
from layertune_studies.engine.context import StudyContext
from layertune_studies.engine.known_names import require_known_names
from layertune_studies.engine.store import StudyStore
from study_runs import nnunet_study, study_of

VOLUMES = {"set": "hippocampus", "size": [8, 8, 8], "labelled": [2]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ["acuracy"]}, "acuracy is none of accuracy, .*, sensitivity_2, which classification has"),
        ({"metrics": ["sensitivity_3"]}, "sensitivity_3 is none of"),
        ({"data": VOLUMES, "metrics": ["dice_3"]}, "dice_3 is none of dice, .*, dice_2, which segmentation has"),
        ({"network": {"name": "resnet81"}}, "there is no network 'resnet81' .*the nearest: .*resnet18"),
        ({"network": {"name": "small_networks:SmalResNet"}}, "no function or class 'SmalResNet'.*SmallResNet"),
    ],
)
def test_wrong_names_are_found_before_the_data_are_read(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "study_cases", lambda *_: pytest.fail("the data were read"))
    study = Study.model_validate(study_of(**changes))
    with pytest.raises(LayertuneError, match=message):
        _ = StudyContext(study, None, StudyStore(Path("nowhere"))).cases


@pytest.mark.parametrize(
    "changes",
    [
        {"network": {"name": "resnet18"}},
        {"network": {"name": "resnet18.a1_in1k"}},
        {"data": VOLUMES, "metrics": ["dice_2", "ppv"], "network": {"name": "UNet"}},
        {"data": {"set": "pneumoniamnist", "binary": True}, "metrics": ["sensitivity_1"]},
    ],
)
def test_right_names_are_taken(changes: dict[str, Any]) -> None:
    require_known_names(Study.model_validate(study_of(**changes)))


def test_the_network_of_nnunet_is_planned_and_has_no_name() -> None:
    require_known_names(Study.model_validate(nnunet_study()))
