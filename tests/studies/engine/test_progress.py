"""The progress bar shows a total once there is one."""

import io

from rich.console import Console

from layertune_studies.engine.progress import study_progress


def shown(total: int | None, completed: int) -> str:
    """Return what the bar shows."""
    console = Console(file=io.StringIO(), width=120)
    progress = study_progress(console)
    progress.add_task("title", total=total, completed=completed)
    console.print(progress.get_renderable())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_steps_are_shown_with_their_total() -> None:
    assert "3/12 steps" in shown(12, 3)


def test_no_total_is_shown_before_trials_are_counted_and_where_none_is_left() -> None:
    assert "steps" not in shown(None, 0)
    assert "steps" not in shown(0, 0)
