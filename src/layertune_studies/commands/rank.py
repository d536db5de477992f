"""The command ``layertune rank``: rank checkpoints for a task."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from layertune.cli.terminal import Json, cell, print_json, print_table, show
from layertune_studies.commands.extra import studies

__all__ = ["rank"]


def rank(
    checkpoints: Annotated[list[Path], typer.Argument(help="Files with weights of one network.")],
    study: Annotated[Path, typer.Option(help="A YAML file with network, task and budget; see docs/alchemy.md.")],
    as_json: Json = False,
) -> None:
    """Rank checkpoints for a task by training only their norms."""
    with studies():
        from layertune_studies.config.ranking import load_rank_study
        from layertune_studies.ranking import run_rank_study

        ranking = run_rank_study(load_rank_study(study), checkpoints)
    candidates = [
        {
            "rank": number,
            "name": candidate.name,
            "metric": candidate.metric,
            "spent": candidate.spent,
            "loaded": candidate.loaded.summary(),
        }
        for number, candidate in enumerate(ranking.candidates, 1)
    ]
    if as_json:
        keys = ("spent", "seconds", "full_budget", "full_seconds")
        print_json({"candidates": candidates, **{key: getattr(ranking, key) for key in keys}})
        return
    rows = [[str(row["name"]), *(cell(row[key]) for key in ("rank", "metric", "spent"))] for row in candidates]
    print_table("Norm-only training", ["Checkpoint", "Rank", "Metric", "Budget"], rows, left=1)
    for row in candidates:
        show(Text(f"{row['name']}: {row['loaded']}"))
    line = f"The norm-only trainings took {ranking.spent} units of budget and {ranking.seconds:.1f} s"
    if ranking.full_seconds is not None:
        line += f"; fine-tuning all weights takes {ranking.full_budget} units, about {ranking.full_seconds:.1f} s"
    show(Text(f"{line}."))
