"""Studies' files: what is understood, and one clear error for what is not."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from layertune_studies.config.sets import SETS
from layertune_studies.config.study import Study, load_study
from layertune_studies.errors import StudyError
from study_runs import METHODS, nnunet_study, study_of, write_study


def method(config: dict[str, Any], message: str) -> tuple[dict[str, Any], str]:
    """A study of one method, and what is said of it."""
    return {"methods": [config]}, message


def test_a_study_of_every_method(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path / "study.yaml", methods=[*METHODS, {"kind": "unet"}]))
    assert [method.kind for method in study.methods][:3] == ["flat", "last", "layer-wise"]
    assert [method.name for method in study.methods if method.learns] == [
        "metalr-exact-joint",
        "metalr-every-proportional",
        "metalr-streaming-additive",
    ]


def test_a_learned_rate_needs_no_rates_and_is_no_baseline(tmp_path: Path) -> None:
    kinds = [{"kind": kind} for kind in ("flat", "scratch", "last_layer", "layer_wise", "bidirectional", "unet")]
    kinds += [{"kind": kind} for kind in ("layer_decay", "inverse_size", "norm_only")]
    methods = [{**one, "rate": "learned"} for one in kinds] + [{"kind": "flat"}, {"kind": "last_layer", "lr": "tuned"}]
    study = load_study(write_study(tmp_path / "study.yaml", methods=methods))
    learned, (flat, tuned) = study.methods[:-2], study.methods[-2:]
    assert [method.name for method in learned] == [f"{one['kind']}-learned" for one in kinds]
    assert all(method.lr == (1.0,) and method.learns for method in learned)
    assert [method.name for method in study.methods if method.finds_rate] == ["flat"], "the tuned rate is not 1"
    assert (flat.lr, flat.learns, tuned.lr, tuned.learns) == ("grid", False, "tuned", False)


def test_nnunet_learns_no_rate_on_a_choice_of_layers() -> None:
    with pytest.raises(
        ValidationError, match="rate learned, of last_layer-learned, is for the loops torch and lightning"
    ):
        Study.model_validate(nnunet_study(methods=[{"kind": "last", "rate": "learned"}]))


def test_a_flat_rate_that_is_learned_finds_no_tuned_rate(tmp_path: Path) -> None:
    methods = [{"kind": "flat", "rate": "learned"}, {"kind": "last_layer", "lr": "tuned"}]
    with pytest.raises(StudyError, match="last_layer takes the tuned rate, which a method of kind flat finds"):
        load_study(write_study(tmp_path / "study.yaml", methods=methods))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": 3}, r"sedes is no key of a study; did you mean seeds\?; here there are name, loop"),
        ({"data": {"set": "pneumoniamnist", "lebelled": [3]}}, r"data.lebelled is no key .*did you mean labelled\?"),
        (
            {"data": {"set": "pneumoniamnist", "split": {"fold": 0, "fild": 1}}},
            r"data.split.fild .*did you mean fold\?",
        ),
        (
            {"methods": [{"kind": "flat"}, {"kind": "metalr", "hyperlr": 1}]},
            r"methods.1.hyperlr .*did you mean hyper_lr",
        ),
        (
            {"methods": [{"kind": "metlar"}]},
            r"methods.0: 'metlar' is no kind of method; did you mean metalr\?; there are",
        ),
        ({"methods": [{"title": "x"}]}, "methods.0: each method says its kind: untuned, flat, scratch"),
        ({"methods": []}, "methods: this list is empty; give at least one"),
        ({"methods": [{"kind": "flat"}, {"kind": "flat"}]}, "two methods are called flat; give one of them a title"),
        (
            {"methods": [{"kind": "last", "lr": "tuned"}]},
            "last_layer takes the tuned rate, which a method of kind flat finds",
        ),
        (
            {"methods": [{"kind": "flat", "lr": "tuned"}]},
            "flat takes the tuned rate, which a method of kind flat finds",
        ),
        method({"kind": "last", "rate": "learned", "lr": "grid"}, "a learned rate has no lr grid to choose from"),
        method({"kind": "inverse_size", "exponents": [-1]}, "methods.0.exponents.0: Input should be greater than or"),
        method({"kind": "inverse_size", "search": "halving", "amount": 3}, "search halving divides the budget of the"),
        ({"compare": ["flaat"]}, "compare names no method: flaat; the methods are flat"),
        ({"data": {"set": "pneumoniamnst"}}, r"'pneumoniamnst' is no data set; did you mean pneumoniamnist\?"),
        ({"data": {"set": "images"}}, "images does not say how many classes there are; give data.classes"),
        (
            {"data": {"set": "busi", "split": {"folds": 3, "fold": 3}}},
            "fold is 3, and the 3 folds are counted from 0 to 2",
        ),
        ({"data": {"set": "busi", "labelled": [0]}}, "data.labelled.0"),
        ({"data": {"set": "mni152"}}, "mni152 makes its cases; give split.counts"),
        ({"data": {"set": "busi", "contrast": "t1"}}, "contrast is for the made brains of mni152"),
        ({"data": {"set": "busi", "split": {"counts": [3, 1, 1], "group": "(a)"}}}, "leave one of them out"),
        ({"data": {"set": "busi", "draw": "disjoint"}}, "give numbers in labelled, not all"),
        ({"data": {"set": "acdc", "window": [0, 1], "percentiles": [1, 99]}}, "window and percentiles both say"),
        ({"data": {"set": "acdc", "percentiles": [99, 1]}}, "percentiles is .*give the lower number first"),
        ({"data": {"set": "busi", "resample": [4, 4]}}, "resample is for volumes, and busi holds images"),
        ({"data": {"set": "busi", "patch": [4, 4]}}, "patch crops images of one size; give data.size too"),
        ({"data": {"set": "acdc", "normalise": "imagenet"}}, "normalise is for images, and acdc holds volumes"),
        ({"data": {"set": "acdc", "split": {"alike": 0.9}}}, "split.alike is for folders of images, and acdc is none"),
        ({"data": {"set": "busi", "split": {"alike": 0.9, "group": "(a)"}}}, "leave out counts and group, or alike"),
        ({"data": {"set": "busi", "augment": {"flip": 2}}}, "data.augment.*flip: .*less than or equal to 1"),
        ({"checkpoints": {"a": {}}, "pretraining": {"weights": "b.pt"}}, "pretraining and checkpoints both say where"),
        method({"kind": "flat", "checkpoints": ["a"]}, "flat.checkpoints names a, and there are none"),
        method({"kind": "flat", "after": "last"}, "method flat with after needs .* keep_networks: true"),
        (
            {"methods": [{"kind": "flat", "after": "last"}], "keep_networks": True},
            "flat.after names last, and there are",
        ),
        ({"clip": {}}, "clip needs the trained networks; set keep_networks: true"),
        method({"kind": "bidirectional", "depth": "I2"}, r"a method with a depth of its own needs settings"),
        ({"pretraining": {"task": "supervised"}}, "takes its cases from another data set; give pretraining.data"),
        (
            {"pretraining": {"task": "digits", "data": {"set": "hippocampus"}}},
            "data is for the tasks genesis and supervised",
        ),
        ({"pretraining": {"task": "digits", "steps": 9, "cycle": 8}}, "cycle is 8, .* at least as long as steps, 9"),
        ({"lrs": [0.1, -1]}, "lrs.1: .*greater than 0"),
        ({"budget": {"amount": 0}}, "budget.amount: .*greater than or equal to 1"),
        ({"pretraining": {"weights": "a.pt", "task": "digits"}}, "weights from a file or from a task, not from both"),
        ({"name": "a/b"}, "name: .*pattern"),
        ({"seeds": "many"}, "seeds: .*valid integer"),
        ({"lrs": [0.01, 1e-2]}, "lrs: 0.01 is given twice; leave one of them out"),
        ({"lrs": [0.1, float("inf")]}, "lrs.1: Input should be a finite number"),
        ({"lrs": []}, "lrs: this list is empty; give at least one value"),
        ({"metrics": ["auc", "auc"]}, "metrics: auc is given twice"),
        ({"compare": []}, "compare: this list is empty"),
        ({"data": {"set": "pneumoniamnist", "labelled": [8, 8]}}, "data.labelled: 8 is given twice"),
        ({"data": {"set": "pneumoniamnist", "labelled": ["all", 8, "all"]}}, "data.labelled: all is given twice"),
        ({"data": {"set": "pneumoniamnist", "labelled": []}}, "data.labelled: this list is empty"),
        ({"data": {"set": "pneumoniamnist", "labelled": ["most"]}}, r"data.labelled.0: [^;]*; data.labelled.0: [^;]*$"),
        method({"kind": "flat", "lr": [0.1, 0.1]}, "methods.0.lr: 0.1 is given twice"),
        method({"kind": "flat", "lr": []}, "methods.0.lr: this list is empty"),
        method({"kind": "layer-wise", "first": [5, 5]}, "methods.0.first: 5 is given twice"),
        method({"kind": "layer-wise", "first": []}, "methods.0.first: this list is empty[^:]*$"),
        method(
            {"kind": "bi-directional", "settings": [[1, 1], [1, 1]]}, r"methods.0.settings: \(1, 1\) is given twice"
        ),
        method({"kind": "bi-directional", "settings": []}, "methods.0.settings: this list is empty"),
        method({"kind": "layer-decay", "rates": [0.5, 0.75, 0.5]}, "methods.0.rates: 0.5 is given twice"),
        method({"kind": "unet", "schemes": ["expanding", "expanding"]}, "methods.0.schemes: expanding is given twice"),
        method({"kind": "unet", "schemes": []}, "methods.0.schemes: this list is empty"),
        method({"kind": "metalr", "min_lr": 0.1, "max_lr": 0.1}, "methods.0: max_lr is 0.1, .* above min_lr, 0.1"),
        method({"kind": "metalr", "hyper_lr": float("inf")}, "methods.0.hyper_lr: Input should be a finite number"),
        method({"kind": "alchemy", "threshold": 0.1, "quantile": 0.1}, "methods.0: threshold and quantile both say"),
    ],
)
def test_what_is_not_understood_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        load_study(write_study(tmp_path / "study.yaml", **changes))


def test_a_change_without_a_bound_may_be_asked_for(tmp_path: Path) -> None:
    methods = [{"kind": "metalr", "max_change": float("inf"), "min_lr": 1e-6, "max_lr": 1e-5}]
    (found,) = load_study(write_study(tmp_path / "study.yaml", methods=methods)).methods
    assert found.model_dump()["max_change"] == float("inf")


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    content = study_of()
    del content["budget"]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(StudyError, match="budget is missing"):
        load_study(tmp_path / "study.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: [1, 2", "is not YAML"),
        (b"- 1\n- 2\n", "holds no study: a study is a mapping with name"),
        (b"", "holds no study"),
        (b"\xff\xfe", "cannot be read"),
        (b"name: !!python/object/apply:os.system [date]\n", "is not YAML"),
    ],
)
def test_files_that_are_no_study(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "study.yaml").write_bytes(content)
    with pytest.raises(StudyError, match=message):
        load_study(tmp_path / "study.yaml")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"no.yaml cannot be read"):
        load_study(tmp_path / "no.yaml")


def test_each_sets_page_says_where_it_comes_from_its_licence_and_its_layout() -> None:
    for name, found in SETS.items():
        assert found.source, name
        assert found.licence, name
        assert found.layout, name
        assert found.page().count(". Licence: ") == 1
