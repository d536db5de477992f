"""The command line's part of Network Alchemy: `layertune gammas` and `layertune rank`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from torch import Tensor, nn

from layertune.alchemy.kernels import pair_kernels
from layertune.alchemy.norms import affine_norms, gammas, require_finite
from layertune.cli.terminal import Json, aside, cell, print_json, print_table, show
from layertune.errors import AlchemyError
from layertune.hosts.networks import named_network, parse_arguments, parse_shape
from layertune.layers.norm_layers import gamma_name
from layertune.layers.trace import trace
from layertune.weights.loading import Loaded, load_weights, read_weights

__all__ = ["Figure", "Threshold", "report_gammas", "show_gammas"]

Threshold = Annotated[float, typer.Option(min=0.0, help="Kernels with |gamma| below it are counted.")]
Figure = Annotated[Path | None, typer.Option(help="A figure to write: the gammas of the network.")]


def show_gammas(
    checkpoint: Annotated[Path, typer.Argument(help="A file of weights, of any host.")],
    model: Annotated[
        str, typer.Option(help="The network it was saved from: timm's or MONAI's name, or module:factory.")
    ],
    shape: Annotated[
        str | None, typer.Option("--input", help="Shape of an input, batch first; as for `layertune layers`.")
    ] = None,
    arg: Annotated[
        list[str] | None, typer.Option(help="A constructor's argument, key=value, as JSON or a Python literal.")
    ] = None,
    threshold: Threshold = 0.05,
    figure: Figure = None,
    as_json: Json = False,
) -> None:
    """Show the gammas of a checkpoint, norm by norm, and whose kernels are small; nothing is trained."""
    with aside():
        made = named_network(
            model, shape=None if shape is None else parse_shape(shape), arguments=parse_arguments(arg or [])
        )
        weights = read_weights(checkpoint)
    report_gammas(
        made.network,
        made.example,
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
    """Print the gammas of weights in the network that they are of, and draw them.

    Args:
        network: gets the weights.
        example: an input, for a trace; nothing is computed.
        weights: as ``read_weights`` gives them.
        file: where they come from, the title of the table.
        model: what the network is called.
        threshold: kernels with |gamma| below it are counted.
        figure: a figure to write.
        as_json: print JSON instead of a table.

    Raises:
        ModelError: the network has no gammas.
        AlchemyError: the weights lack gammas, or have some that are not finite; or the figure cannot be written.
    """
    with aside():
        loaded = load_weights(network, weights)
        sizes = gammas(network)
        _require_loaded(network, loaded)
        require_finite(sizes)
        both = pair_kernels(network, trace(network, example))
    rows = [_row(name, values, both.pairs, both.unpaired, threshold) for name, values in sizes.items()]
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
    if both.unpaired:
        show(Text(f"{len(both.unpaired)} norms scale no kernels of one layer and are left alone; --json says why."))
    if figure is not None:
        show(Text(f"Figure: {figure}"))


def _draw(sizes: Mapping[str, Tensor], threshold: float, file: Path) -> None:
    from layertune.plots.gammas import plot_gammas  # matplotlib is slow to import

    drawn = plot_gammas(sizes, threshold=threshold).get_figure(root=True)
    assert drawn is not None, "new axes belong to a figure"
    try:
        drawn.savefig(file)
    except (OSError, ValueError) as error:  # no such folder, or a format that matplotlib does not write
        raise AlchemyError(f"the figure {file} cannot be written ({error}); give a path as gammas.png") from error


def _require_loaded(network: nn.Module, loaded: Loaded) -> None:
    """A gamma that the file lacks would be shown as the 1 that it was made with."""
    names = {name: f"{name}.{gamma_name(norm)}".removeprefix(".") for name, norm in affine_norms(network).items()}
    missing = [name for name, gamma in names.items() if gamma not in loaded.matched]
    if missing:
        raise AlchemyError(
            f"the checkpoint lacks the gammas of {len(missing)} norms ({', '.join(missing[:3])}), so it is of another "
            f"network: {loaded.summary()}; name the network that it was saved from, with its arguments"
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
