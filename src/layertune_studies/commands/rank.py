"""The command line's ranking of checkpoints: ``layertune rank``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from layertune.cli.terminal import Json, cell, print_json, print_table, show
from layertune_studies.commands.extra import studies, study_module

__all__ = ["rank"]


def rank(
    checkpoints: Annotated[list[Path], typer.Argument(help="Files of weights of one network.")],
    study: Annotated[Path, typer.Option(help="A YAML file: network, task and budget; see docs/alchemy.md.")],
    as_json: Json = False,
) -> None:
    """Rank checkpoints for a task by training their norms alone."""
    module = study_module("ranking")
    with studies():
        ranking = module.run_rank_study(study_module("config.ranking").load_rank_study(study), checkpoints)
    found = [
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
        print_json({"candidates": found, **{key: getattr(ranking, key) for key in keys}})
        return
    rows = [[str(row["name"]), *(cell(row[key]) for key in ("rank", "metric", "spent"))] for row in found]
    print_table("Norm-only training", ["Checkpoint", "Rank", "Metric", "Budget"], rows, left=1)
    for row in found:
        show(Text(f"{row['name']}: {row['loaded']}"))
    line = f"{ranking.spent} units of training the norms took {ranking.seconds:.1f} s"
    if ranking.full_seconds is not None:
        line += f"; fine-tuning all takes {ranking.full_budget} units, about {ranking.full_seconds:.1f} s"
    show(Text(f"{line}."))
