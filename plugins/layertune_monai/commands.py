"""The command line's part for MONAI: `layertune monai`; imports without MONAI."""

import typer

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="layertune in MONAI.")


@app.callback()
def _options() -> None:
    pass
