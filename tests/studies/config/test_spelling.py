"""Methods have one spelling in files and tables, and trials keep their names."""

from typing import Any

import pytest

from layertune_studies.config.methods import METHOD_KINDS
from layertune_studies.config.spelling import KINDS
from layertune_studies.config.study import Study
from layertune_studies.engine.trial import Trial
from layertune_studies.training.settings import Setting
from study_runs import study_of


def study(**changes: Any) -> Study:
    return Study.model_validate(study_of(**changes))


def test_files_and_tables_write_one_spelling() -> None:
    assert set(KINDS) >= {"last_layer", "layer_wise", "bidirectional", "layer_decay", "last_then_all", "norm_only"}
    assert not [kind for kind in KINDS if "-" in kind]


@pytest.mark.parametrize(("kind", "old"), list(zip(KINDS, METHOD_KINDS, strict=True)))
def test_both_spellings_give_one_method_and_one_name_of_its_trials(kind: str, old: str) -> None:
    studies = [study(methods=[{"kind": "flat", "title": "for tuned rates"}, {"kind": one}]) for one in (kind, old)]
    ours, theirs = (one.methods[1] for one in studies)
    assert ours == theirs
    assert old in Trial(ours, Setting("all"), 0.1, 8, 0).name(studies[0])
    assert ours.name == theirs.name
    assert kind == old or old not in (ours.name, theirs.name)


def test_a_study_compares_with_a_method_in_both_spellings() -> None:
    for name in ("last_layer", "last"):
        assert study(methods=[{"kind": "last"}, {"kind": "metalr"}], compare=[name]).compare == ("last_layer",)


def test_an_unknown_kind_is_answered_with_the_spelling_of_today() -> None:
    with pytest.raises(ValueError, match="bidirectionl"):
        study(methods=[{"kind": "bidirectionl"}])
