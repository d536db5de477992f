"""Pre-training: where its cases come from, when it ends, and which weights are kept."""

from typing import Any

import pytest
import torch
from torch import Tensor

from layertune_studies.config.study import Study
from layertune_studies.data.case import Case
from layertune_studies.data.cases import Cases, LazyCases
from layertune_studies.errors import StudyError
from layertune_studies.training import pretraining
from layertune_studies.training.pretraining import pretrain, reserved_cases
from study_runs import study_of

BRAINS = {"set": "mni152", "size": [16, 16, 16], "split": {"counts": [2, 1, 1]}}
TASK = {"cases": 2, "steps": 8, "batch": 2, "lr": 0.01}


def study(task: dict[str, Any], **changes: Any) -> Study:
    network = {"name": "UNet", "arguments": {"channels": [2, 4], "strides": [2], "norm": "batch"}}
    data = {"set": "volumes", "classes": 3}
    return Study.model_validate(
        study_of(**{"data": data, "network": network, "metrics": ["dice"], "pretraining": TASK | task, **changes})
    )


def cases(count: int = 4) -> Cases:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, 16, 16, 16, generator=generator)
    volumes = [Case(image, (2 * image).round().to(torch.uint8)) for image in images]
    lazy = LazyCases(volumes.__getitem__, range(count))
    return Cases(lazy, lazy, lazy, 3, "segmentation", (1, 16, 16, 16))


def weights(task: dict[str, Any], **changes: Any) -> dict[str, Tensor]:
    found = pretrain(study(task, **changes), cases(), None, lambda _: None)
    assert found is not None
    return dict(found)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_an_early_checkpoint_is_that_of_the_whole_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    class Watched(pretraining.Adam):
        def step(self, *_: Any) -> None:
            rates.append(self.param_groups[0]["lr"])
            super().step()

    monkeypatch.setattr(pretraining, "Adam", Watched)
    whole = {"task": "genesis", "optimizer": "adam", "schedule": "cosine"}
    late, early = weights(whole), weights({**whole, "early": 4})
    assert rates[8:] == rates[:2], "an eighth of the steps would be one with a schedule of its own"
    assert not equal(late, early)
    assert equal(early, weights({**whole, "early": 4}))


def test_another_data_set_is_learned_with_its_labels() -> None:
    found = weights({"task": "supervised", "data": {**BRAINS, "contrast": "t1"}})
    assert not equal(found, weights({"task": "supervised", "data": {**BRAINS, "contrast": "t2"}}))
    with pytest.raises(StudyError, match=r"pretraining.cases is 3, and pretraining.data has 2 training cases"):
        weights({"task": "supervised", "data": BRAINS, "cases": 3})


def test_another_data_set_is_restored() -> None:
    found = weights({"task": "genesis", "data": {**BRAINS, "percentiles": [1, 99], "size": [24, 16, 16]}})
    assert not equal(found, weights({"task": "genesis"}))


def test_the_head_stays_behind_where_it_is_not_wanted() -> None:
    whole, without = weights({"task": "inverted"}), weights({"task": "inverted", "head": False})
    dropped = whole.keys() - without.keys()
    assert dropped
    assert all(whole[name].shape[0] == 3 for name in dropped if name.endswith("bias"))


def test_the_seed_of_a_study_changes_the_batches() -> None:
    assert not equal(weights({"task": "inverted"}), weights({"task": "inverted"}, seed=0))


@pytest.mark.parametrize(("task", "reserved", "expected"), [("inverted", None, 2), ("inverted", 3, 3), (None, 5, 5)])
def test_cases_are_reserved_for_pretraining(task: str | None, reserved: int | None, expected: int) -> None:
    data = {"set": "volumes", "classes": 3, "reserved": reserved}
    assert reserved_cases(study({"task": task}, data=data)) == expected


def test_cases_of_another_data_set_reserve_none() -> None:
    assert reserved_cases(study({"task": "genesis", "data": BRAINS})) == 0


def test_intensities_from_0_to_1_are_inverted_within_that_range(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    make = pretraining.batch_maker

    def watched(source: LazyCases, *args: Any, **options: Any) -> Any:
        seen.append(source[0].image)
        return make(source, *args, **options)

    monkeypatch.setattr(pretraining, "batch_maker", watched)
    weights({"task": "inverted", "steps": 1})
    weights({"task": "inverted", "steps": 1}, data={"set": "volumes", "classes": 3, "percentiles": [1, 99]})
    image = cases().train[0].image
    assert seen[0].equal(-image)
    assert seen[1].equal(1 - image)
