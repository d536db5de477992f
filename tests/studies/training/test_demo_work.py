from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from layertune_studies.data.brains import Cohort
from layertune_studies.data.case import Case
from layertune_studies.demo_methods import Candidate, Method
from layertune_studies.demo_options import DemoOptions
from layertune_studies.demo_store import Store
from layertune_studies.demo_train import make_network
from layertune_studies.demo_work import Piece, Workshop
from layertune_studies.training.loop import Log

pytestmark = pytest.mark.slow
OPTIONS = DemoOptions(
    size=(16, 16, 16), source=2, shots=2, seeds=1, held_out=1, pretrain_steps=4, steps=5, checkpoint_every=2
)
FLAT = Method("all", "All", (Candidate("flat", 0.1),))
HEAD = Method("last", "Last", (Candidate("head", 0.1, only_head=True),))
ENDS = Method("ends", "Ends", (Candidate("m2-n5", 0.1, frozen=(2, 5)),))
EXACT = Method("metalr", "Exact", (Candidate("exact", 0.1),), meta="exact")
STREAMING = Method("streaming", "Streaming", (Candidate("streaming", 0.1),), meta="streaming")


def _subject(seed: int) -> Case:
    """Two overlapping boxes in noise; the smaller is class 2."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.zeros(1, 16, 16, 16, dtype=torch.uint8)
    label[:, 3 : 9 + seed % 4, 3:12, 3:12] = 1
    label[:, 5:8, 5:9, 5 : 8 + seed % 3] = 2
    return Case(label.float() + 0.3 * torch.randn(label.shape, generator=generator), label)


COHORT = Cohort([_subject(0), _subject(1)], [[_subject(2), _subject(3)]], [_subject(4)], [_subject(5), _subject(6)])


def _workshop(folder: Path, on_step: Callable[[str, int], None] = lambda *_: None) -> Workshop:
    return Workshop(OPTIONS, Store(folder, OPTIONS.identity()), COHORT, on_step)


def _stop_at(step: int) -> Callable[[str, int], None]:
    def on_step(_: str, done: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    return on_step


def _tuned(workshop: Workshop, method: Method) -> Piece:
    network = {name: value.clone() for name, value in make_network(0).state_dict().items()}
    start = Piece(network, Log())
    return workshop.tuned(start, method, method.candidates[0], lr=0.1, seed=0)


def _assert_same(one: Piece, other: Piece) -> None:
    assert one.log.losses == other.log.losses
    assert one.log.curve == other.log.curve
    assert one.rates == other.rates
    assert all(torch.equal(one.network[name], other.network[name]) for name in one.network)


@pytest.mark.parametrize("method", [FLAT, ENDS, EXACT, STREAMING], ids=lambda method: method.key)
@pytest.mark.parametrize("step", [1, 2, 3])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path: Path, method: Method, step: int) -> None:
    whole = _tuned(_workshop(tmp_path / "whole"), method)
    with pytest.raises(KeyboardInterrupt):
        _tuned(_workshop(tmp_path / "halves", _stop_at(step)), method)
    seen: list[int] = []
    resumed = _tuned(_workshop(tmp_path / "halves", lambda _, done: seen.append(done)), method)
    assert seen[0] == step // 2 * 2, "it goes on from the last checkpoint"
    _assert_same(whole, resumed)
    assert len(whole.log.losses) == OPTIONS.steps


def test_pretraining_resumes_too(tmp_path: Path) -> None:
    whole = _workshop(tmp_path / "whole").pretrained()
    with pytest.raises(KeyboardInterrupt):
        _workshop(tmp_path / "halves", _stop_at(3)).pretrained()
    _assert_same(whole, _workshop(tmp_path / "halves").pretrained())


def test_a_finished_piece_is_not_trained_again(tmp_path: Path) -> None:
    first = _tuned(_workshop(tmp_path), STREAMING)
    seen: list[int] = []
    again = _tuned(_workshop(tmp_path, lambda _, done: seen.append(done)), STREAMING)
    assert seen == [OPTIONS.steps]
    _assert_same(first, again)
    assert not list(tmp_path.rglob("*.checkpoint.pt"))


@pytest.mark.parametrize(("method", "kept"), [(HEAD, range(1, 7)), (ENDS, range(2, 6))], ids=["head", "ends"])
def test_frozen_layers_stay_as_they_were(tmp_path: Path, method: Method, kept: range) -> None:
    workshop = _workshop(tmp_path)
    piece = _tuned(workshop, method)
    before = make_network(0).state_dict()
    for layer in workshop.layers:
        same = all(torch.equal(before[name], piece.network[name]) for name in layer.parameters)
        assert same == (layer.depth in kept), layer


def test_methods_see_the_same_training_batches(tmp_path: Path) -> None:
    """Until the first learned correction, one step in, all start with the same loss."""
    first = {method.key: _tuned(_workshop(tmp_path), method).log.losses[0] for method in (FLAT, ENDS, EXACT, STREAMING)}
    assert len(set(first.values())) == 1, first


def test_rates_are_learned_where_asked(tmp_path: Path) -> None:
    workshop = _workshop(tmp_path)
    assert _tuned(workshop, FLAT).profile is None
    profile = _tuned(workshop, EXACT).profile
    assert profile is not None
    assert profile.layers == tuple(layer.name for layer in workshop.layers)
    assert len(set(profile.scales[-1])) > 1


def test_a_diverged_training_loses_against_any_other(tmp_path: Path) -> None:
    piece = _tuned(_workshop(tmp_path), FLAT)
    piece.log.losses[-1] = float("nan")
    assert piece.validation == 0.0
