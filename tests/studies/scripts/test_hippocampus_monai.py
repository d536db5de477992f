"""The hippocampus study on a task made here."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from decathlon_task import TASK, make_task
from layertune import LRProfile
from layertune_studies import hippocampus_monai
from layertune_studies.demo_options import DemoOptions
from layertune_studies.hippocampus_methods import FLAT, STARTS, Way, learned_ways, static_ways
from layertune_studies.hippocampus_monai import STUDY, run_study

pytestmark = pytest.mark.slow


@pytest.fixture
def options(tmp_path: Path) -> DemoOptions:
    data = make_task(tmp_path / "data", cases=16).parent
    small: dict[str, Any] = {
        "size": (16, 16, 16),
        "source": 4,
        "shots": 2,
        "held_out": 2,
        "pretrain_steps": 2,
        "steps": 2,
        "validate_every": 2,
        "checkpoint_every": 1,
    }
    return DemoOptions(root=data, out=tmp_path / "study", **{**STUDY, **small, "data": TASK})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer settings, of each kind one."""

    def few() -> list[Way]:
        kept = [way.method.candidates[: 3 if way.method is FLAT else 1] for way in static_ways()]
        pairs = zip(static_ways(), kept, strict=True)
        return [replace(way, method=replace(way.method, candidates=candidates)) for way, candidates in pairs]

    monkeypatch.setattr(hippocampus_monai, "static_ways", few)


@pytest.mark.usefixtures("quick")
def test_it_goes_on_where_it_was_interrupted(options: DemoOptions) -> None:
    told: list[str] = []

    def stop(text: str) -> None:
        told.append(text)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(options, tell=stop)
    done = set((options.out / "pieces").iterdir())
    ages = {path: path.stat().st_mtime_ns for path in done}
    results = run_study(options)
    assert {path: path.stat().st_mtime_ns for path in done} == ages, "nothing is done twice"
    assert json.loads((options.out / "results.json").read_text())["rows"] == results["rows"]
    assert {len(row["dice"]) for row in results["rows"]} == {options.seeds}
    learned = {way.method.title for start in STARTS for way in learned_ways(start)}
    assert learned <= {row["method"] for row in results["rows"]}
    for name in ("network", "depth"):
        assert (options.out / f"hippocampus_monai_{name}.png").stat().st_size > 5000
    assert len(LRProfile.load(options.out / "profile-exact-seed0.json").layers) == 7
