"""Run timm's own ``train.py``, unchanged, with a scheme of layers or with learned rates.

timm's script is not in timm's package but in timm's repository. The launcher runs the file as it is. It changes the
optimizer factory that the script imports, for what the script has no argument for; see
``layertune_timm.optimizer_factory``::

    python -m layertune_timm.train --param-groups bidirectional:3,6 --metalr streaming -- DATA --model resnet18 ...

The launcher's arguments are before ``--`` (``--help`` lists them), and timm's own arguments after it. With
``torchrun --nproc-per-node=2 -m layertune_timm.train ...`` all processes learn the same rates.
"""

import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from layertune.errors import LayertuneError, ModelError
from layertune.hosts.plugin import import_host
from layertune_timm.plugin import PLUGIN
from layertune_timm.train_options import TrainOptions, error_of, read_options

__all__ = ["SCRIPT", "find_script", "main", "run"]

SCRIPT = "LAYERTUNE_TIMM_TRAIN"
"""The environment variable with the path of timm's script."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run timm's ``train.py``. A user's mistake ends in one line and exit code 2.

    Args:
        arguments: The launcher's arguments, ``--``, and timm's arguments. Default: those of the command line.
    """
    options = read_options(sys.argv[1:] if arguments is None else arguments)
    try:
        run(options)
    except LayertuneError as error:
        error_of(" ".join(str(error).split()))


def run(options: TrainOptions) -> None:
    """Run the script as ``python train.py`` does, with the changed optimizer factory.

    Args:
        options: The options of the launcher.

    Raises:
        ModelError: There is no script, or it made no optimizer with timm's factory.
        LayertuneError: The scheme or the settings do not fit the network or the optimizer.
    """
    script = find_script(options.script)
    with _started_as(script, options.arguments):
        import_host(PLUGIN)
        from layertune_timm.optimizer_factory import LayerwiseFactory

        with LayerwiseFactory(options.scheme, options.metalr, options.opponent) as factory:
            runpy.run_path(str(script), run_name="__main__")
            if factory.optimizer is None:
                raise ModelError(
                    f"{script} ended without a call of timm.optim.create_optimizer_v2, so the launcher changed nothing "
                    "in it; give timm's own train.py with --script"
                )
            if factory.phases is not None and not factory.phases.scheduled:
                raise ModelError(
                    f"{script} ended without a call of timm.scheduler.create_scheduler_v2, which tells the phases of "
                    "--opponent their epochs; give timm's own train.py with --script"
                )
            factory.report()


def find_script(script: Path | None) -> Path:
    """Find timm's ``train.py``.

    Args:
        script: The path that the user gave. Without one, ``LAYERTUNE_TIMM_TRAIN`` names the script, and without that it
            is ``train.py`` in the current folder.

    Raises:
        ModelError: The file does not exist. The message says where to get it.

    Example:
        >>> find_script(Path("nowhere/train.py"))
        Traceback (most recent call last):
        layertune.errors.ModelError: there is no script nowhere/train.py; timm's train.py is not in timm's package: ...
    """
    path = script or Path(os.environ.get(SCRIPT) or "train.py")
    if not path.is_file():
        raise ModelError(
            f"there is no script {path}; timm's train.py is not in timm's package: clone "
            "https://github.com/huggingface/pytorch-image-models at the tag of your timm, and name it with --script "
            f"PATH/train.py or {SCRIPT}=PATH/train.py, or start in its folder"
        )
    return path


@contextmanager
def _started_as(script: Path, arguments: Sequence[str]) -> Iterator[None]:
    """Set the arguments and the first import folder as ``python script`` does; timm's clone holds its own timm."""
    argv, folders = sys.argv, sys.path.copy()
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.resolve().parent))
    try:
        yield
    finally:
        sys.argv = argv
        sys.path[:] = folders


if __name__ == "__main__":
    main()
