"""The names of result files are those of version 0.1, so that studies which were run with it are resumed."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from layertune_studies.config.study import Study, load_study
from layertune_studies.engine.context import depths_name, pretraining_name
from layertune_studies.engine.trial import all_trials
from layertune_studies.training.settings import Depths
from study_runs import study_of

FOLDER = Path(__file__).parents[3] / "configs" / "studies"

# Written by version 0.1: for each study the digests in the names of the file of its network's depths
# and of the file of its pre-trained weights, behind a digest of the names of all of its trials' files. The trials are
# those of a network of depth 10 with 4 levels; a rate that waits for the tuned one is 0.01.
VERSION_0_1 = {
    "alchemy_figure1_acdc": ("e36285857078", "64d8b7c2dd12", "7c2ea9e54160"),
    "alchemy_figure1_lits": ("81b916a45914", "d3364c5607c2", "0bae951d0ae1"),
    "alchemy_tables_brats17": ("3c117477977c", "a7ceef21450f", "13442b2efe96"),
    "alchemy_tables_nsclc": ("b7e61f151097", "b7f77feaa680", "5ea644f91e04"),
    "hippocampus_few_labels": ("4afb7de5740a", "81e81a3c2998", "8f080204d7cd"),
    "hippocampus_starting_rates": ("9b65d6671ae1", "81e81a3c2998", "8f080204d7cd"),
    "metalr_figure2_busi": ("4da0d9f38cbe", "66eaf4e7d145", "661b117d6724"),
    "metalr_figure3_pocus": ("2fb50c969957", "d0e8ef068ece", "5fdd791c26ea"),
    "metalr_figure4_lits": ("65060d0afe4a", "b6c2ebcab2b5", "48bdb1ef2ac9"),
    "metalr_table2_busi": ("dd45850e2def", "66eaf4e7d145", "661b117d6724"),
    "metalr_table2_chest_xray": ("25c12176f9f8", "79725628c773", "c88bae161990"),
    "metalr_table2_pocus": ("225e9f11b994", "d0e8ef068ece", "5fdd791c26ea"),
    "metalr_table3_lits": ("b13b1dcd7fba", "b6c2ebcab2b5", "48bdb1ef2ac9"),
    "metalr_table3_lits_i2": ("31831fa419f2", "fb50d840a5a9", "fb2b08819664"),
    "pneumonia_few_labels": ("e2d3a317f033", "b4d66b90f433", "bde3f19476bf"),
    "pneumonia_search": ("6bda29c4408e", "b4d66b90f433", "bde3f19476bf"),
    "pneumonia_starting_rates": ("264067722441", "344acffa5fb3", "bde3f19476bf"),
}


def names_of(study: Study) -> list[str]:
    """The names of all trials' files of a study."""
    trials = all_trials(study, Depths(d=10, levels=4))
    return [replace(trial, lr=trial.lr or 0.01).name(study) for trial in trials]


@pytest.mark.parametrize("name", VERSION_0_1)
def test_names_of_files_have_not_changed_since_version_0_1(name: str) -> None:
    study = load_study(FOLDER / f"{name}.yaml")
    trials = hashlib.sha256("\n".join(names_of(study)).encode()).hexdigest()[:12]
    found = trials, depths_name(study).removeprefix("network_"), pretraining_name(study).removeprefix("pretraining_")
    assert found == VERSION_0_1[name]


def test_the_name_of_one_trial_in_full() -> None:
    first = names_of(load_study(FOLDER / "pneumonia_few_labels.yaml"))[0]
    assert first == "scratch_all_lr0.001_n50_seed0_3991bdee070e"


def test_a_learned_rate_is_part_of_a_trials_identity_with_its_settings() -> None:
    config = study_of(methods=[{"kind": "last"}, {"kind": "last", "rate": "learned"}])
    study = Study.model_validate(config)
    tuned, learned = (one.identity(study)["method"] for one in all_trials(study, Depths(10, 4)) if one.lr != 0.1)
    assert tuned.keys().isdisjoint({"rate", "learner"}), "results from before the key was known would not be found"
    assert learned["rate"] == "learned"
    assert learned["learner"] == {"rule": "free", "hyper_lr": 0.05, "streaming": True}
