"""The command line: ``layertune``."""

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    # Commands of plug-ins import `layertune.cli.terminal`, and the app loads them: it must not load with the package.
    from layertune.cli.app import app

    app()
