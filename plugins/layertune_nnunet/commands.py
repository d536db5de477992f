"""The command line's part for nnU-Net: `layertune nnunet`; imports without nnU-Net."""

import typer

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="layertune in nnU-Net.")


@app.callback()
def _options() -> None:
    pass
