"""timm's own ``train.py``, unchanged, with a scheme of layers or learned rates: ``python -m layertune_timm.train``.

timm's script is not in timm's package: it lies in a clone of its repository, and stays there as it is. The launcher
gives it what it has no argument for, through the optimizer factory that it imports; see
``layertune_timm.optimizer_factory``::

    python -m layertune_timm.train --param-groups bidirectional:3,6 --metalr streaming -- DATA --model resnet18 ...

Before ``--`` stand the launcher's arguments (``--help`` shows them), after it timm's own. With
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
from layertune_timm import PLUGIN
from layertune_timm.train_options import TrainOptions, error_of, read_options

__all__ = ["SCRIPT", "find_script", "main", "run"]

SCRIPT = "LAYERTUNE_TIMM_TRAIN"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run timm's ``train.py``; a user's mistake ends in one line and exit code 2.

    Args:
        arguments: the launcher's, ``--``, timm's; those of the command line by default.
    """
    options = read_options(sys.argv[1:] if arguments is None else arguments)
    try:
        run(options)
    except LayertuneError as error:
        error_of(" ".join(str(error).split()))


def run(options: TrainOptions) -> None:
    """Run the script as ``python train.py`` would, within the changed factory.

    Raises:
        ModelError: there is no such script, or it made no optimizer by timm's factory.
        LayertuneError: the scheme or the settings do not fit the network or the optimizer.
    """
    script = find_script(options.script)
    with _started_as(script, options.arguments):
        import_host(PLUGIN)
        from layertune_timm.optimizer_factory import LayerwiseFactory

        with LayerwiseFactory(options.scheme, options.metalr) as factory:
            runpy.run_path(str(script), run_name="__main__")
            if factory.optimizer is None:
                raise ModelError(
                    f"{script} ended without a call of timm.optim.create_optimizer_v2, so nothing was changed in it; "
                    "give timm's own train.py with --script"
                )
            factory.report()


def find_script(given: Path | None) -> Path:
    """Where timm's ``train.py`` is: as given, else as ``LAYERTUNE_TIMM_TRAIN`` says, else in the current folder.

    Raises:
        ModelError: there is no file; the message says where to get it.

    Example:
        >>> find_script(Path("nowhere/train.py"))
        Traceback (most recent call last):
        layertune.errors.ModelError: there is no script nowhere/train.py; timm's train.py is not in timm's package: ...
    """
    path = given or Path(os.environ.get(SCRIPT) or "train.py")
    if not path.is_file():
        raise ModelError(
            f"there is no script {path}; timm's train.py is not in timm's package: clone "
            "https://github.com/huggingface/pytorch-image-models at the tag of your timm, and name it with --script "
            f"PATH/train.py or {SCRIPT}=PATH/train.py, or start in its folder"
        )
    return path


@contextmanager
def _started_as(script: Path, arguments: Sequence[str]) -> Iterator[None]:
    """The arguments and the first import folder that ``python script`` has; timm's clone holds a timm of its own."""
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
