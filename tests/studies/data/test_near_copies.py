"""Near copies of images are found, and stay in one part of a split."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from layertune_studies.config.study import Data
from layertune_studies.data import near_copies as module
from layertune_studies.data.cases import load_cases
from layertune_studies.data.near_copies import near_copies
from layertune_studies.errors import DataError
from study_runs import write_pictures


def pictures(count: int) -> Tensor:
    return torch.rand(count, 1, 40, 48, generator=torch.Generator().manual_seed(0))


def test_copies_of_copies_are_one_group_whatever_their_size_and_brightness() -> None:
    first, second, third = pictures(3)
    larger = torch.nn.functional.interpolate(first[None], size=(80, 96), mode="bilinear")[0]
    assert near_copies([second, first, third, 3 * first - 1, larger], 0.9) == [0, 1, 2, 1, 1]


def test_a_chain_of_near_copies_is_one_group_across_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 1)
    start, end = pictures(2)
    chain = [start, 0.75 * start + 0.25 * end, 0.5 * start + 0.5 * end]
    assert near_copies([chain[0], chain[2]], 0.85) == [0, 1]
    assert near_copies([chain[0], chain[2], chain[1]], 0.85) == [0, 0, 0]


def test_images_of_one_value_are_copies_of_none() -> None:
    assert near_copies(torch.zeros(3, 1, 8, 8), 0.5) == [0, 1, 2]


def test_near_copies_stay_in_one_part(tmp_path: Path) -> None:
    rng = np.random.RandomState(0)
    folder = tmp_path / "busi" / "benign"
    folder.mkdir(parents=True)
    for number in range(12):  # four groups of three
        base = np.random.RandomState(number % 4).randint(0, 200, (40, 40))
        Image.fromarray((base + rng.randint(0, 5, (40, 40))).astype(np.uint8)).save(folder / f"{number}.png")
    split: dict[str, Any] = {"folds": 4, "alike": 0.95}
    cases = load_cases(Data.model_validate({"set": "busi", "split": split}), tmp_path)
    bases = [int(path.stem) % 4 for path in cases.paths]
    groups = [{bases[number] for number in part.numbers} for part in (cases.train, cases.validation, cases.test)]
    assert [len(group) for group in groups] == [2, 1, 1]
    assert set.union(*groups) == {0, 1, 2, 3}


def test_a_set_with_a_split_of_its_own_keeps_it(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_pictures(tmp_path / "chest_xray" / part, ["NORMAL", "PNEUMONIA"])
    data = Data.model_validate({"set": "chest-xray", "split": {"alike": 0.9}})
    with pytest.raises(DataError, match=r"chest-xray comes with its own split.*leave out split.alike"):
        load_cases(data, tmp_path)
