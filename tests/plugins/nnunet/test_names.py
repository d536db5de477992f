"""Trainers by name: settings in suffixes, nnU-Net's own search, and pickling."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

import layertune_nnunet
from layertune_nnunet.errors import TrainerNameError
from layertune_nnunet.trainers.names import number, suffixes_of

FOLDER = str(Path(layertune_nnunet.__file__).parent / "trainer_folder")
TRAINERS = [name for name in layertune_nnunet.__all__ if name.startswith("nnUNetTrainer")]


def look_up(name: str) -> Any:
    """Search as nnU-Net does in each folder of ``nnUNet_extTrainer``."""
    return recursive_find_python_class(
        FOLDER, name, None, base_folder=FOLDER, verbose=True, cleanup_imports_from_base_folder=True
    )


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("MetaLR_hlr0p05_every5_20epochs", {"hyper_lr": 0.05, "every": 5, "epochs": 20}),
        ("MetaLR_hlr0", {"hyper_lr": 0.0}),
        ("MetaLR_cosine_lr1em3_min1em6_max0p1", {"rule": "cosine", "base_lr": 1e-3, "min_lr": 1e-6, "max_lr": 0.1}),
        ("MetaLR_holdout20_1epoch", {"meta_cases": "holdout20", "epochs": 1}),
        ("MetaLR_metaval_stage", {"meta_cases": "validation", "granularity": "stage"}),
        ("MetaLRStreaming_additive_I2", {"rule": "additive", "depth": "I2"}),
        ("BiDirectional_m3_n6_I2", {"m": 3, "n": 6, "depth": "I2"}),
        ("LayerWise_first4_100epochs", {"first": 4, "epochs": 100}),
        ("LastLayer_lr0p01", {"base_lr": 0.01}),
        ("NormOnly_head_biases_20epochs", {"head": True, "biases": True, "epochs": 20}),
        ("BNScale_lam1em3_alpha0p2_beta2_absolute", {"lam": 1e-3, "alpha": 0.2, "beta": 2.0, "absolute": True}),
        ("Alchemy_id50_thr0p05_lam1em4", {"identification": 50, "threshold": 0.05, "lam": 1e-4}),
        ("AlchemyMetaLR_id5_hlr0p05_cosine", {"identification": 5, "hyper_lr": 0.05, "rule": "cosine"}),
        ("AlchemyMetaLRStreaming_q0p1_lr1em3", {"quantile": 0.1, "base_lr": 1e-3}),
        ("Alchemy_patience10_q0p1_whole", {"patience": 10, "quantile": 0.1, "whole_layers": True}),
    ],
)
def test_a_name_holds_values(name: str, values: dict[str, Any]) -> None:
    found = look_up(f"nnUNetTrainer{name}")
    assert found.__name__ == f"nnUNetTrainer{name}"
    assert issubclass(found, nnUNetTrainer)
    assert {key: value for key, value in vars(found).items() if not key.startswith("__")} == values
    assert all(hasattr(found.__base__, key) for key in values)


@pytest.mark.parametrize("name", [*TRAINERS, "nnUNetTrainerMetaLR_hlr0p05", "nnUNetTrainerBiDirectional_m3_n6"])
def test_each_search_finds_the_same_class_and_so_does_pickle(name: str) -> None:
    found = look_up(name)
    assert found is look_up(name)
    assert found is getattr(layertune_nnunet, name)
    assert pickle.loads(pickle.dumps(found)) is found


def test_other_names_are_not_found() -> None:
    assert [look_up(name) for name in ("nnUNetTrainerMine", "nnUNetTrainer_20epochs", "nnUNetTrainerMetaLRMine_3")] == [
        None
    ] * 3


@pytest.mark.parametrize(
    "text", ["hrl0p05", "hlr", "hlr0.05", "0epochs", "m3", "", "every0", "holdout", "every5_every6"]
)
def test_the_error_of_an_unknown_suffix_lists_all_suffixes(text: str) -> None:
    with pytest.raises(TrainerNameError) as caught:
        look_up(f"nnUNetTrainerMetaLR_{text}")
    message = str(caught.value)
    assert f"'_{text.rpartition('_')[2]}'" in message
    assert all(f"_{suffix.example}: " in message for suffix in suffixes_of(layertune_nnunet.nnUNetTrainerMetaLR))


def test_streaming_takes_no_meta_cases() -> None:
    with pytest.raises(TrainerNameError, match="'_holdout20' is not one"):
        look_up("nnUNetTrainerMetaLRStreaming_holdout20")


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_examples_in_the_message_can_be_read(trainer: str) -> None:
    found = getattr(layertune_nnunet, trainer)
    for suffix in suffixes_of(found):
        variant = getattr(layertune_nnunet, f"{trainer}_{suffix.example}")
        assert suffix.attribute in vars(variant)
        assert hasattr(found, suffix.attribute)


def test_numbers() -> None:
    assert [number(text) for text in ("0p05", "1em4", "2p5em3", "1e2", "7")] == [0.05, 1e-4, 2.5e-3, 100.0, 7.0]
