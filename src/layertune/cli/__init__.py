"""The command line ``layertune``."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line. The exit code is 2 for a user's mistake, and 130 after Ctrl-C."""
    if sys.stdout is None:
        sys.stderr.write("layertune: the standard output is closed; redirect it to a file, or to /dev/null\n")
        raise SystemExit(2)
    try:
        # Commands of plug-ins import `layertune.cli.terminal`, and the app loads them, so it must not load with the
        # package.
        from layertune.cli.app import app
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    app()
