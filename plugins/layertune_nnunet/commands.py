"""The commands `layertune nnunet ...`. This module imports without nnU-Net."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

import layertune_nnunet
from layertune.alchemy.redundancy import THRESHOLD
from layertune.cli.gammas import Figure, Threshold, report_gammas
from layertune.cli.terminal import Json, hosts_to_stderr, print_json, print_table, show
from layertune.hosts.plugin import import_host
from layertune_nnunet.errors import PathsError
from layertune_nnunet.plugin import PLUGIN
from layertune_nnunet.tools.trainer_path import VARIABLE, trainer_path

if TYPE_CHECKING:
    from layertune_nnunet.tools.import_weights import ImportedWeights

__all__ = ["app"]

VARIABLES = ("nnUNet_preprocessed", "nnUNet_results")
"""The environment variables that training needs."""

HELP = ("-h", "--help")

app = typer.Typer(no_args_is_help=True, help="Use layertune with nnU-Net.")


@app.command()
def trainers(as_json: Json = False) -> None:
    """Print the folder of layertune's trainers: export nnUNet_extTrainer=$(layertune nnunet trainers)."""
    import_host(PLUGIN)
    if as_json:
        print_json({VARIABLE: trainer_path()})
        return
    typer.echo(trainer_path())


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def train(context: typer.Context) -> None:
    """Run nnUNetv2_train with layertune's trainers. It takes all arguments, as in: train 4 3d_fullres 0 -tr ..."""
    import_host(PLUGIN)
    if not set(HELP) & set(context.args):
        _check_variables()
        _check_trainer(context.args)
    raise typer.Exit(_run(["nnUNetv2_train", *context.args]))


@app.command("import")
def import_(
    weights: Annotated[Path, typer.Argument(help="State dict, checkpoint or safetensors file, from any program.")],
    out: Annotated[Path, typer.Argument(help="The file to write, for -pretrained_weights.")],
    configuration: Annotated[
        str, typer.Option("-c", "--configuration", help="Configuration of the plan, as in 3d_fullres.")
    ],
    dataset: Annotated[
        str | None,
        typer.Option(
            "-d", "--dataset", help="Number or name of a planned data set. Instead of it, you can give --plans."
        ),
    ] = None,
    plans_name: Annotated[str, typer.Option("-p", help="Name of the data set's plan.")] = "nnUNetPlans",
    plans: Annotated[Path | None, typer.Option(help="Path of a plan, instead of --dataset.")] = None,
    dataset_json: Annotated[
        Path | None, typer.Option(help="The plan's dataset.json. By default, the file beside the plan.")
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            help="OLD=NEW replaces the beginning of names in the file. Then no names are guessed. Can be repeated."
        ),
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="Use the names in the file that begin so, where it holds several networks.")
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Import what fits, also if it is less than half.")
    ] = False,
    adapt: Annotated[
        list[str] | None,
        typer.Option(
            help="Adapt what does not fit: zero_channels, classes, inflate, kernel_size, decoder and others; see "
            "layertune.load_weights. Can be repeated."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights, which fill what the file lacks.")] = 0,
    as_json: Json = False,
) -> None:
    """Turn weights of any origin into a file for -pretrained_weights, and report which of them fit the network."""
    import_host(PLUGIN)
    if (dataset is None) == (plans is None):
        raise typer.BadParameter("give either --dataset or --plans", param_hint="--dataset")
    with hosts_to_stderr():
        from layertune_nnunet.tools.import_weights import import_weights, renaming
        from layertune_nnunet.tools.planned_network import find_plan

        plan, description = (plans, plans.with_name("dataset.json")) if plans else find_plan(str(dataset), plans_name)
        imported = import_weights(
            weights,
            out,
            plans=plan,
            dataset_json=dataset_json or description,
            configuration=configuration,
            seed=seed,
            rename=renaming(rename or []),
            prefix=prefix,
            allow_partial=allow_partial,
            adapt=adapt or (),
        )
    if as_json:
        print_json(imported.as_dict())
        return
    _show_import(imported, f"{weights} in {configuration}")


def _show_import(imported: "ImportedWeights", title: str) -> None:
    loaded = imported.loaded
    rows = [[own, file, loaded.adapted.get(own, "loaded")] for own, file in loaded.matched.items()]
    rows += [[own, "", f"fresh: {why}"] for own, why in loaded.missing.items()]
    rows += [["", file, f"not used: {why}"] for file, why in loaded.unused.items()]
    print_table(title, ["Network", "File", "Outcome"], rows, left=3)
    show(Text(loaded.summary()))
    if imported.fresh:
        count, seed = len(imported.fresh), imported.seed
        show(Text(f"{count} tensors of {imported.out} are initial weights (seed {seed}), not pre-trained ones."))
    show(Text("nnU-Net always starts with fresh segmentation layers, whatever the file holds."))


@app.command()
def portable(
    model: Annotated[Path, typer.Argument(help="Folder of a trained model, or a zip file of it.")],
    as_json: Json = False,
) -> None:
    """Make checkpoints name nnU-Net's own trainer, so that people without layertune can predict with them."""
    import_host(PLUGIN)
    with hosts_to_stderr():
        from layertune_nnunet.tools.portable import make_portable

        done = make_portable(model)
    if as_json:
        print_json([renamed.as_dict() for renamed in done])
        return
    rows = [[renamed.file, renamed.before, renamed.after] for renamed in done]
    print_table(str(model), ["Checkpoint", "Trainer before", "Trainer now"], rows, left=3)


@app.command()
def gammas(
    model: Annotated[
        Path, typer.Argument(help="A checkpoint of nnU-Net, or a folder that holds one checkpoint_final.pth.")
    ],
    threshold: Threshold = THRESHOLD,
    figure: Figure = None,
    as_json: Json = False,
) -> None:
    """Show the gammas of a checkpoint. Its network is built from the plan in the checkpoint; nothing is trained."""
    import_host(PLUGIN)
    with hosts_to_stderr():
        from layertune_nnunet.tools.checkpoint_network import checkpoint_network

        file, planned, weights = checkpoint_network(model)
    report_gammas(
        planned.network,
        planned.example,
        weights,
        file=file,
        model=planned.trainer,
        threshold=threshold,
        figure=figure,
        as_json=as_json,
    )


def _check_variables() -> None:
    unset = [name for name in VARIABLES if not os.environ.get(name)]
    if unset:
        raise PathsError(f"{' and '.join(unset)} not set; set {' and '.join(VARIABLES)} to nnU-Net's folders")


def _check_trainer(arguments: Sequence[str]) -> None:
    """Raise the errors of a trainer's name here: nnU-Net would end in a traceback that hides them."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("-tr", default="")
    try:
        name = parser.parse_known_args(arguments)[0].tr
    except argparse.ArgumentError:  # nnU-Net's own parser answers it
        return
    if name.partition("_")[0] in layertune_nnunet.__all__:
        with hosts_to_stderr():
            getattr(layertune_nnunet, name).check_settings()


def _run(words: Sequence[str]) -> int:
    """Run one of nnU-Net's programs to its end, and return its exit code as a shell reports it."""
    beside = Path(sys.executable).parent
    program = shutil.which(words[0], path=str(beside)) or shutil.which(words[0])
    if program is None:
        raise PathsError(
            f"{words[0]} is neither beside {sys.executable} nor on the PATH; install it with {PLUGIN.install_line}"
        )
    variables = {**os.environ, VARIABLE: trainer_path()}
    with subprocess.Popen([program, *words[1:]], env=variables) as process:  # noqa: S603 - nnU-Net's own program
        while True:
            try:
                code = process.wait()
            except KeyboardInterrupt:  # the program got it as well, and may need a moment to end
                continue
            return code if code >= 0 else 128 - code
