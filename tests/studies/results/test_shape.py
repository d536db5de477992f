"""What the shape of learned rates comes from: both factors against gradients computed by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from layertune_studies.config.methods import Flat
from layertune_studies.config.study import Study
from layertune_studies.engine.context import StudyContext
from layertune_studies.engine.store import StudyStore
from layertune_studies.engine.trial import Trial, training_of
from layertune_studies.errors import StudyError
from layertune_studies.results.shape import Shape, app, draw, measure, shape_of, table
from layertune_studies.training.settings import Setting
from study_runs import study_of, write_images, write_study

LEARN = {"kind": "metalr", "mode": "streaming", "rule": "joint", "lr": [0.01]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_images(tmp_path / "data")
    return tmp_path / "data"


def gradients(network: nn.Module, parameters: list[Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    loss = nn.functional.cross_entropy(network.train()(batch[0]), batch[1])
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def test_lengths_and_cosines_of_one_step_are_those_of_its_two_gradients(root: Path) -> None:
    steps = {"optimizer": {"momentum": 0.0}, "budget": {"unit": "steps", "amount": 1, "batch": 4}}
    study = Study.model_validate(study_of(**steps))
    trial = Trial(Flat(kind="flat"), Setting("all"), 0.01, 8, 0)
    lengths, cosines = measure(training_of(study, trial, root, None))
    by_hand = training_of(study, trial, root, None)
    layers = by_hand.layers.parameters_of(by_hand.network)
    everything = [p for parameters in layers.values() for p in parameters]
    first = gradients(by_hand.network, everything, by_hand.task.batch(0))
    with torch.no_grad():
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(everything) - 0.01 * first, everything)
    second = gradients(by_hand.network, everything, by_hand.task.batch(1))
    sizes = [sum(p.numel() for p in parameters) for parameters in layers.values()]
    for number, (u, g) in enumerate(zip(first.split(sizes), second.split(sizes), strict=True)):
        assert lengths[number] == pytest.approx(float(u.norm() * g.norm()), rel=1e-3)
        assert cosines[number] == pytest.approx(float(torch.cosine_similarity(u, g, dim=0)), abs=1e-3)


def test_a_studys_shape_has_what_each_of_its_methods_learned(root: Path, tmp_path: Path) -> None:
    context = StudyContext(Study.model_validate(study_of(methods=[LEARN])), root, StudyStore(tmp_path / "out"))
    shape = shape_of(context, labelled=8, lr=0.01, seeds=2)
    assert list(shape.learned) == ["metalr-streaming-joint"]
    assert len(shape.layers) == len(shape.lengths) == len(shape.cosines) == 10
    assert np.prod(shape.lengths) == pytest.approx(1)
    assert all(0 < factor != 1 for factor in shape.learned["metalr-streaming-joint"])


def test_the_table_ends_with_both_correlations() -> None:
    shape = Shape(("stem", "block", "head"), [3.0, 1.0, 2.0], [0.1, 0.2, 0.3], {"rule": [9.0, 1.0, 4.0]})
    lines = table(shape).splitlines()
    assert lines[2] == "| `stem` | 3.00 | 0.10 | 9.00 |"
    assert lines[-2:] == [
        "| rank correlation with lengths |  |  | 1.00 |",
        "| rank correlation with cosine |  |  | -0.50 |",
    ]
    assert [ax.get_ylabel() for ax in draw(shape).axes] == ["|g| |u|", "cos(g, u)", "learned factor"]


def test_a_study_that_learns_no_rates_has_no_shape(root: Path, tmp_path: Path) -> None:
    context = StudyContext(Study.model_validate(study_of()), root, StudyStore(tmp_path / "out"))
    with pytest.raises(
        StudyError, match="has no method that learns a rate for each layer; add one of kind metalr with a rule"
    ):
        shape_of(context, labelled=8, lr=0.01, seeds=1)


def test_the_command_prints_the_table_and_draws_the_figure(root: Path, tmp_path: Path) -> None:
    study, out = write_study(tmp_path / "study.yaml", methods=[LEARN]), tmp_path / "out"
    options = ["--root", str(root), "--labelled", "8", "--lr", "0.01", "--seeds", "1", "--out", str(out)]
    ran = CliRunner().invoke(app, [str(study), *options])
    assert ran.exit_code == 0
    assert "rank correlation with cosine" in ran.stdout
    assert (out / "shape.png").stat().st_size > 10_000
    missing = CliRunner().invoke(app, [str(study), *options, "--labelled", "99"])
    assert missing.exit_code == 2
    assert "99 labelled cases were asked for" in missing.stderr
