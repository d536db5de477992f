"""The cases for meta batches, and those that are left for training and validation."""

import json
from pathlib import Path
from typing import Any

import pytest

from layertune_nnunet import nnUNetTrainerMetaLR
from layertune_nnunet.errors import MetaCasesError
from layertune_nnunet.meta.cases import SEED, choose_cases, hold_out, split
from nnunet_runs import CASES, DATASET, TRAINING, VALIDATION, make

NUMBERED = [f"case_{number:02}" for number in range(20)]


def started(**values: Any) -> Any:
    trainer = make(nnUNetTrainerMetaLR, **values)
    trainer.on_train_start()
    return trainer


def cases(loader: Any) -> list[str]:
    return list(loader.data_loader.indices)


def used(trainer: Any) -> tuple[list[str], list[str], list[str]]:
    """Return the cases of training, validation and meta batches."""
    return cases(trainer.dataloader_train), cases(trainer.dataloader_val), cases(trainer.dataloader_meta)


@pytest.mark.usefixtures("nnunet")
def test_by_default_meta_batches_come_from_the_training_cases() -> None:
    trainer = started()
    assert used(trainer) == (TRAINING, VALIDATION, TRAINING)
    assert cases(trainer.dataloader_train) is not cases(trainer.dataloader_meta)
    assert "WARNING" not in Path(trainer.log_file).read_text()


def test_a_hold_out_is_a_part_of_the_training_cases_kept_beside_the_splits(nnunet: Path) -> None:
    trainer = started(meta_cases="holdout20")
    training, validation, meta = used(trainer)
    file = nnunet / "preprocessed" / DATASET / "splits_holdout20_fold_0.json"
    assert json.loads(file.read_text()) == {"training": training, "meta": meta}
    assert len(meta) == 1
    assert sorted(training + meta) == TRAINING
    assert validation == VALIDATION
    assert trainer.do_split()[1] == VALIDATION
    keys = {str(case) for _ in range(3) for case in next(trainer.dataloader_meta)["keys"]}
    assert keys == set(meta)


def test_a_hold_out_that_a_user_has_written_is_used(nnunet: Path) -> None:
    file = nnunet / "preprocessed" / DATASET / "splits_holdout20_fold_0.json"
    file.write_text(json.dumps({"training": TRAINING[:3], "meta": TRAINING[3:]}))
    assert used(started(meta_cases="holdout20")) == (TRAINING[:3], VALIDATION, TRAINING[3:])


@pytest.mark.usefixtures("nnunet")
def test_validation_cases_give_a_warning() -> None:
    trainer = started(meta_cases="validation")
    assert used(trainer) == (TRAINING, VALIDATION, VALIDATION)
    assert "WARNING: the learning rates are learned from the validation cases" in Path(trainer.log_file).read_text()


@pytest.mark.usefixtures("nnunet")
def test_fold_all() -> None:
    assert [sorted(part) for part in used(started(fold="all"))] == [CASES] * 3
    training, validation, meta = used(started(fold="all", meta_cases="holdout25"))
    assert len(meta) == 2
    assert sorted(training + meta) == sorted(validation) == CASES
    with pytest.raises(MetaCasesError, match="_holdout20"):
        started(fold="all", meta_cases="validation")


@pytest.mark.usefixtures("nnunet")
def test_a_fold_that_is_too_small_is_refused() -> None:
    with pytest.raises(MetaCasesError, match="5 % of 6 training cases are 0"):
        started(meta_cases="holdout5")


def test_a_split_is_seeded_and_does_not_depend_on_the_order() -> None:
    one = split(NUMBERED, 20)
    assert split(NUMBERED[::-1], 20) == one
    assert len(one.meta) == 4
    assert sorted([*one.training, *one.meta]) == NUMBERED
    assert one.meta != NUMBERED[:4]
    assert SEED == 12345  # the splits of users depend on it


@pytest.mark.parametrize(("count", "percent"), [(2, 20), (1, 50), (3, 100), (0, 20), (5, 0)])
def test_neither_part_may_be_empty(count: int, percent: int) -> None:
    with pytest.raises(MetaCasesError, match=f"{percent} % of {count} training cases"):
        split(NUMBERED[:count], percent)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"training": ["case_00"]}', '{"training": 3, "meta": 4}'])
def test_a_file_without_a_split_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "splits.json"
    file.write_text(content)
    with pytest.raises(MetaCasesError, match=r"splits.json holds no split .* delete or correct it"):
        hold_out(NUMBERED, 20, file)


@pytest.mark.parametrize("meta", [[], NUMBERED[10:], NUMBERED[14:], [*NUMBERED[15:], "case_99"]])
def test_a_split_of_other_cases_is_refused(meta: list[str], tmp_path: Path) -> None:
    file = tmp_path / "splits.json"
    file.write_text(json.dumps({"training": NUMBERED[:15], "meta": meta}))
    with pytest.raises(MetaCasesError, match=r"splits.json splits \d+ cases, which are not the 20 training cases"):
        hold_out(NUMBERED, 20, file)
    assert file.exists()


def test_an_unknown_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MetaCasesError, match="as in 'holdout20', not 'test'"):
        choose_cases("test", NUMBERED, [], tmp_path / "unused")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "preprocessed").write_text("")  # no folder, so that nobody can, not even root
    with pytest.raises(
        MetaCasesError, match=r"the split of 20 % is kept in .*splits.json, which cannot be used .*set "
    ):
        hold_out(NUMBERED, 20, tmp_path / "preprocessed" / "splits.json")
