"""Names that version 0.1 documented by module path stay importable from there."""

import importlib

import pytest

import layertune

DOCUMENTED = [
    "activations.Activation",
    "autolr.LRTrial",
    "clipping.ClipPoint",
    "clipping.ClipTest",
    "convergence.Progress",
    "groups.Frozen",
    "kernels.KernelNorm",
    "plugin.PluginStatus",
    "policies.Policy",
    "profile.ProfileSummary",
    "ranking.Candidate",
    "ranking.Ranking",
    "redundancy.RedundantKernels",
    "replay.Replay",
]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_name_of_version_0_1_is_the_public_name_of_today(name: str) -> None:
    module, _, attribute = name.partition(".")
    assert getattr(importlib.import_module(f"layertune.{module}"), attribute) is getattr(layertune, attribute)


def test_both_paths_give_one_module_that_keeps_its_name() -> None:
    old, new = (importlib.import_module(f"layertune.{path}") for path in ("profile", "rates.profile"))
    assert old is new
    assert new.__name__ == "layertune.rates.profile"
    assert new.__spec__.name == "layertune.rates.profile"


def test_other_missing_modules_are_missing() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"layertune\.no_such_module"):
        importlib.import_module("layertune.no_such_module")
