"""Fine-tune anybody's bundle: a configuration beside its own, which adds a handler and changes nothing of theirs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layertune.files import write_file
from layertune.metalr.settings import MetaLRSettings
from layertune.policies.by_name import METHODS, scheme
from layertune_monai.bundle.train_config import TrainConfig, inside, is_saver, read_train_config, train_files
from layertune_monai.errors import BundleError

__all__ = ["Adapted", "Method", "adapt"]

OWN = "layertune"  # the section that the written configuration adds
WEIGHTS = "models/model.pt"
SAVED = "models/layertune"
RESULTS = "eval/layertune"


@dataclass(frozen=True, kw_only=True)
class Method:
    """How to fine-tune.

    Attributes:
        name: one of ``layertune.policies.by_name.METHODS``.
        depth: ``"I1"`` or ``"I2"``, how the schemes that freeze layers count them.
        m: shallowest frozen depth of ``"bidirectional"``; by default the middle third is frozen.
        n: deepest frozen depth of ``"bidirectional"``.
        first: shallowest tuned depth of ``"layer_wise"``; by default the deeper half is tuned.
        hyper_lr: step size of learned rates; by default what suits the rule.
        rule: how they are learned: ``"joint"``, ``"cosine"``, ``"proportional"`` or ``"additive"``. In the first two
            the scale of a loss, which other people choose, has no part.
        every: learn at each k-th step.

    Raises:
        LayertuneError: a setting that is out of range.
    """

    name: str = "metalr"
    depth: str = "I1"
    m: int | None = None
    n: int | None = None
    first: int | None = None
    hyper_lr: float | None = None
    rule: str = "joint"
    every: int = 1

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise BundleError(f"method is one of {', '.join(METHODS)}, not {self.name!r}")
        scheme(self.name, m=self.m, n=self.n, first=self.first)
        if self.depth not in ("I1", "I2"):
            raise BundleError(f"depth is I1 (order of execution) or I2 (resolution level), not {self.depth!r}")
        MetaLRSettings.given(hyper_lr=self.hyper_lr, rule=self.rule, every=self.every)

    @property
    def learns(self) -> bool:
        """Whether rates are learned."""
        return self.name.startswith("metalr")

    def settings(self) -> dict[str, Any]:
        """What the written configuration lets its user change on the command line, as ``--layertune#hyper_lr 0.05``."""
        if self.learns:
            return {"method": self.name, "hyper_lr": self.hyper_lr, "rule": self.rule, "every": self.every}
        return {"method": self.name, "depth": self.depth, "m": self.m, "n": self.n, "first": self.first}

    def handlers(self, trainer: str, root: str) -> list[dict[str, Any]]:
        """The handler that does it, as a component; none for ``"all"``."""
        if self.name == "all":
            return []
        if self.learns:
            learned = {name: f"@{OWN}#{name}" for name in ("hyper_lr", "rule", "every")}
            return [
                {
                    "_target_": "layertune_monai.MetaLRHandler",
                    "optimizer": f"@{trainer}#optimizer",
                    **learned,
                    "streaming": self.name == "metalr_streaming",
                    "output_dir": f"{root}{RESULTS}'",
                }
            ]
        numbers = {name: f"@{OWN}#{name}" for name in ("method", "m", "n", "first")}
        policy = {"_target_": "layertune.policies.by_name.scheme", **numbers}
        return [{"_target_": "layertune_monai.LayerFreezeHandler", "policy": policy, "depth": f"@{OWN}#depth"}]


@dataclass(frozen=True)
class Adapted:
    """What was written.

    Attributes:
        files: relative to the bundle.
        config_files: for each of them what ``--config_file`` takes.
        notes: what the user should know.
    """

    files: tuple[str, ...]
    config_files: tuple[str, ...]
    notes: tuple[str, ...]


def adapt(
    bundle: Path,
    method: Method,
    *,
    config: tuple[str, ...] = (),
    trainer: str | None = None,
    weights: Path | None = None,
) -> Adapted:
    """Write ``configs/layertune.json`` beside a bundle's own training configuration, which is only read.

    It adds a handler to the trainer, loads the bundle's weights first, and saves what is trained to
    ``models/layertune``. For a bundle with a ``multi_gpu_train`` configuration, ``configs/layertune_multi_gpu.json``
    does the same there.

    Args:
        bundle: its root.
        method: how to fine-tune.
        config: the configurations that train, relative to the root; ``configs/train.json`` or ``.yaml`` by default.
        trainer: the trainer's id, where it cannot be found.
        weights: what to start from; ``models/model.pt`` of the bundle by default.

    Returns:
        The files, and how to run them.

    Raises:
        BundleError: no bundle, no trainer in it, a path that leaves it, a handler of layertune's in it already, or a
            file of that name that is not layertune's.
    """
    files = list(config) or train_files(bundle)
    if not files:
        raise BundleError(f"{bundle} has no configs/train.json or .yaml; tell which configuration trains with --config")
    read = {"configs/layertune.json": read_train_config(bundle, files, trainer)}
    _check_no_learner(bundle, read["configs/layertune.json"])
    several, unfit = (None, ()) if config else _for_several(bundle, read["configs/layertune.json"])
    if several is not None:
        read["configs/layertune_multi_gpu.json"] = several
    start, notes = _start(bundle, weights)
    for name in read:
        _check_own(bundle, name)
    for name, found in read.items():
        _write(inside(bundle, name), _override(found, method, start))
    lists = tuple("[" + ",".join(f"'{file}'" for file in (*found.files, name)) + "]" for name, found in read.items())
    return Adapted(tuple(read), lists, (*notes, *unfit))


def _for_several(bundle: Path, alone: TrainConfig) -> tuple[TrainConfig | None, tuple[str, ...]]:
    """The configuration for several GPUs; or why there is none, if the bundle's does not go with the other."""
    multi = train_files(bundle, "multi_gpu_train")
    try:
        return (read_train_config(bundle, [*alone.files, *multi], alone.trainer) if multi else None), ()
    except BundleError as error:
        return None, (f"Nothing is written for several GPUs: {error}.",)


def _override(found: TrainConfig, method: Method, weights: str | None) -> dict[str, Any]:
    trainer = found.trainer.replace("::", "#")
    root = "$@bundle_root + '/" if "bundle_root" in found.parser else "$'"
    handlers = method.handlers(trainer, root)
    content: dict[str, Any] = {OWN: {**method.settings(), "handlers": handlers}}
    if weights is not None:
        content[OWN]["weights"] = weights if Path(weights).is_absolute() else f"{root}{weights}'"
        load = {
            "_target_": "layertune_monai.weights.load_pretrained",
            "network": f"@{trainer}#network",
            "file": f"@{OWN}#weights",
        }
        content["+initialize" if isinstance(found.parser.get("initialize"), list) else "initialize"] = [load]
    saved = f"{root}{SAVED}'"
    content.update({f"{place.replace('::', '#')}#save_dir": saved for place in found.savers()})
    if handlers:
        # After the places of savers, which may lie in the very list that this replaces.
        content.update(_with_handlers(found, trainer, saved))
    return content


def _with_handlers(found: TrainConfig, trainer: str, saved: str) -> dict[str, Any]:
    """The trainer's handlers with ours before them: those that run on the first process alone come last."""
    own, theirs = f"{trainer}#train_handlers", found.of_trainer("train_handlers")
    if theirs is None:
        return {own: f"@{OWN}#handlers"}
    if isinstance(theirs, list):
        copied = [{**part, "save_dir": saved} if is_saver(part) else part for part in theirs]
        return {f"{OWN}#theirs": copied, own: f"$@{OWN}#handlers + @{OWN}#theirs"}
    expression = theirs.removeprefix("$")
    return {own: f"$@{OWN}#handlers + list(({expression}) or [])"}


def _start(bundle: Path, weights: Path | None) -> tuple[str | None, tuple[str, ...]]:
    """What to load first: a path relative to the bundle, or an absolute one."""
    saved = f"What is trained is saved to {SAVED}, so that {WEIGHTS} stays as it is."
    if weights is not None:
        if not weights.is_file():
            raise BundleError(f"there is no file of weights at {weights}")
        path, root = weights.resolve(), bundle.resolve()
        return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix(), (saved,)
    if (bundle / WEIGHTS).is_file():
        return WEIGHTS, (saved,)
    large = next(iter(bundle.glob("large_files.y*ml")), None)
    if large is not None and WEIGHTS in large.read_text(encoding="utf-8"):
        return WEIGHTS, (f"{WEIGHTS} is still to come: python -m monai.bundle download_large_files", saved)
    return None, (f"There is no {WEIGHTS}: training starts from what the configuration itself loads, or anew.", saved)


def _check_no_learner(bundle: Path, found: TrainConfig) -> None:
    if learners := found.learners():
        place = learners[0].replace("::", "#")
        raise BundleError(
            f"{found.files[0]} of {bundle} has a handler of layertune's already, at {place}, and two would learn over "
            "each other; run it as it is and choose there, in our own bundle by --method"
        )


def _check_own(bundle: Path, name: str) -> None:
    path = inside(bundle, name)
    if not path.exists():
        return
    try:
        own = OWN in json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        own = False
    if not own:
        raise BundleError(f"{path} is there already and not layertune's; rename it first")


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        write_file(path, json.dumps(content, indent=4) + "\n")
    except OSError as error:
        raise BundleError(f"{path} cannot be written: {error}") from error
