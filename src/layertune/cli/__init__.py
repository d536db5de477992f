"""The command line ``layertune``."""

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    # The app loads the commands of plug-ins, and these import `layertune.cli.terminal`. So this package must not load
    # the app when it is imported.
    from layertune.cli.app import app

    app()
