"""The command ``layertune gammas``: show the gammas of a checkpoint, in any host's network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from torch import Tensor, nn

from layertune.alchemy.kernels import pair_kernels
from layertune.alchemy.norms import affine_norms, gammas, require_finite
from layertune.alchemy.redundancy import THRESHOLD
from layertune.cli.network_options import Arguments, InputShape, network_of
from layertune.cli.terminal import Json, cell, hosts_to_stderr, print_json, print_table, show
from layertune.errors import AlchemyError, WeightsError
from layertune.layers.norm_layers import gamma_name
from layertune.layers.trace import trace
from layertune.weights.loading import Loaded, load_weights, read_weights

__all__ = ["Figure", "Threshold", "report_gammas", "show_gammas"]

ADVICE = "name the network that it was saved from with --model, and its arguments with --arg key=value"

Threshold = Annotated[float, typer.Option(min=0.0, help="Count kernels with a |gamma| below this value.")]
Figure = Annotated[Path | None, typer.Option(help="File of a figure to write, which shows the gammas.")]


def show_gammas(
    checkpoint: Annotated[Path, typer.Argument(help="File with weights, of any host.")],
    model: Annotated[
        str, typer.Option(help="The network of the checkpoint: a name of timm or MONAI, or module:factory.")
    ],
    shape: InputShape = None,
    arg: Arguments = None,
    threshold: Threshold = THRESHOLD,
    figure: Figure = None,
    as_json: Json = False,
) -> None:
    """Show the gammas of a checkpoint, norm by norm, and count the small ones; nothing is trained."""
    with hosts_to_stderr():
        named = network_of(model, shape, arg)
        weights = read_weights(checkpoint)
    report_gammas(
        named.network,
        named.example,
        weights,
        file=checkpoint,
        model=model,
        threshold=threshold,
        figure=figure,
        as_json=as_json,
    )


def report_gammas(
    network: nn.Module,
    example: Tensor,
    weights: Mapping[str, Tensor],
    *,
    file: Path,
    model: str,
    threshold: float,
    figure: Path | None,
    as_json: bool,
) -> None:
    """Load weights into their network, print its gammas, and draw them.

    Args:
        network: The network. It gets the weights.
        example: An input of the network for a trace; nothing is computed.
        weights: The weights, as ``read_weights`` returns them.
        file: The file of the weights, which is the title of the table.
        model: The name of the network in the JSON output.
        threshold: Kernels with a |gamma| below it are counted.
        figure: The file of a figure to write; None for no figure.
        as_json: Whether to print JSON instead of a table.

    Raises:
        ModelError: The network has no gammas.
        WeightsError: Nothing of the weights fits.
        AlchemyError: The weights lack gammas, or hold gammas that are not finite; or the figure cannot be written.
    """
    with hosts_to_stderr():
        loaded = _load(network, weights, file)
        sizes = gammas(network)
        _require_loaded(network, loaded)
        require_finite(sizes)
        kernels = pair_kernels(network, trace(network, example))
    rows = [_row(name, values, kernels.pairs, kernels.unpaired, threshold) for name, values in sizes.items()]
    if figure is not None:
        _draw(sizes, threshold, figure)
    if as_json:
        print_json({"model": model, "loaded": loaded.as_dict(), "threshold": threshold, "norms": rows})
        return
    keys = {"name": "Norm", "kernels_of": "Scales the kernels of", "count": "Gammas", "mean": "Mean", "std": "Std"}
    keys |= {"smallest": "Smallest", "small": f"Below {threshold:g}"}
    print_table(str(file), list(keys.values()), [[cell(row[key]) for key in keys] for row in rows], left=2)
    show(Text(loaded.summary()))
    judged = sum(row["count"] for row in rows if row["kernels_of"])
    small = sum(row["small"] for row in rows if row["kernels_of"])
    show(Text(f"{small} of {judged} kernels have a |gamma| below {threshold:g}."))
    if kernels.unpaired:
        show(Text(f"{len(kernels.unpaired)} norms scale no kernels of one layer and are left alone; --json says why."))
    if figure is not None:
        show(Text(f"Figure: {figure}"))


def _draw(sizes: Mapping[str, Tensor], threshold: float, file: Path) -> None:
    from layertune.plots.gammas import plot_gammas  # matplotlib is slow to import
    from layertune.plots.saving import save_figure

    drawing = plot_gammas(sizes, threshold=threshold).get_figure(root=True)
    assert drawing is not None, "new axes belong to a figure"
    try:
        save_figure(drawing, file)
    except ValueError as error:  # a format that matplotlib does not write
        raise AlchemyError(f"the figure {file} cannot be written ({error}); give a path as gammas.png") from error


def _load(network: nn.Module, weights: Mapping[str, Tensor], file: Path) -> Loaded:
    """Load all that fits; whether it is enough, the gammas say.

    Raises:
        WeightsError: Nothing fits, or the weights cannot be used. The message names only options that the command has.
    """
    try:
        return load_weights(network, weights, allow_partial=True)
    except WeightsError as error:
        reason = str(error).partition(";")[0]
        raise WeightsError(f"{file} cannot be shown: {reason}; {ADVICE}") from error


def _require_loaded(network: nn.Module, loaded: Loaded) -> None:
    """Refuse weights without all gammas: one that is missing would be shown as the 1 that it starts with."""
    names = {name: f"{name}.{gamma_name(norm)}".removeprefix(".") for name, norm in affine_norms(network).items()}
    missing = [name for name, gamma in names.items() if gamma not in loaded.matched]
    if missing:
        raise AlchemyError(
            f"the checkpoint lacks the gammas of {len(missing)} norms ({', '.join(missing[:3])}), so it is of another "
            f"network: {loaded.summary()}; {ADVICE}"
        )


def _row(name: str, values: Tensor, pairs: Any, unpaired: Any, threshold: float) -> dict[str, Any]:
    flat = values.flatten().double()
    return {
        "name": name,
        "kernels_of": pairs[name].operation if name in pairs else None,
        "reason": unpaired.get(name),
        "count": flat.numel(),
        "mean": flat.mean().item(),
        "std": flat.std(correction=0).item(),
        "smallest": flat.abs().min().item(),
        "small": int((flat.abs() < threshold).sum()),
    }
