"""Optimizers of other packages by name: those that need no learning rate or no schedule, as opponents of learned rates.

Each comes from the package of its authors. Nothing of it is written anew here: ``make_optimizer`` imports the package,
checks what the optimizer needs, and builds it.
"""

import importlib
import io
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from layertune.errors import OptimizerError
from layertune.hosts.evaluation_weights import mode_of
from layertune.hosts.plugin import Plugin, import_host

__all__ = ["OPTIMIZERS", "OptimizerPackage", "make_optimizer"]

Groups = list[dict[str, Any]]
FAR = (
    10.0  # a rate that differs by more than this factor from the recommended one was probably meant for another method
)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerPackage:
    """Describe an optimizer of another package.

    Args:
        package: The package, with the lowest version that works and the line that installs it.
        class_name: The name of the optimizer's class.
        module: The module of the class, if it is another one than the package's top-level module.
        lr: The learning rate that the optimizer's documentation recommends.
        estimates: Whether the optimizer estimates its step size. ``lr`` then is a factor on the estimate.
        prepare: Checks the param groups, and returns them as the optimizer takes them.
        source: The paper, and the package's documentation on what the optimizer needs.
    """

    package: Plugin
    class_name: str
    lr: float
    estimates: bool
    prepare: Callable[[str, Groups], Groups]
    source: str
    module: str | None = None

    def load(self) -> Callable[..., Optimizer]:
        """Return the class of the optimizer.

        Raises:
            MissingPackageError: The package is not installed, or too old.
        """
        package = import_host(self.package)
        module = package if self.module is None else importlib.import_module(self.module)
        loaded: Callable[..., Optimizer] = getattr(module, self.class_name)
        return loaded


def make_optimizer(
    name: str,
    params: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
    *,
    lr: float | None = None,
    **options: Any,
) -> Optimizer:
    """Make an optimizer of another package from its name.

    The result is the package's own optimizer: its steps are those of the package, bit for bit.

    - ``"prodigy"`` (package ``prodigyopt``; Mishchenko and Defazio, ICML 2024, arXiv:2306.06101): Adam that estimates
      its step size. Pass ``lr=1.0`` or no ``lr``; change the estimate by ``d_coef`` (0.5 or 2). All groups share one
      rate. Its README recommends no schedule or cosine annealing without restarts, and ``safeguard_warmup=True`` under
      a warm-up. Weight decay is decoupled, as in AdamW.
    - ``"prodigy_split"`` (the same package): Prodigy with one estimate for each layer, as if each layer had a Prodigy
      of its own. Layers are those that the groups name (key ``"layer"``); a group without this key is a layer of its
      own. Rates may differ between layers.
    - ``"ldog"`` (package ``dog-optimizer``; Ivgi, Hinder and Carmon, ICML 2023, arXiv:2302.12022): L-DoG, SGD whose
      step is distance over gradients, for each parameter tensor on its own. Pass ``lr=1.0`` or no ``lr``, and use no
      schedule. ``reps_rel`` sets the first step: 1e-6 (the default), 1e-4 for networks with batch norm, 1e-8 where it
      diverges early. Its README asks to evaluate an average of the weights: ``dog.PolynomialDecayAverager(model)``,
      whose ``step()`` follows that of the optimizer. Weight decay is coupled, that is, added to the gradient, and 0 by
      default. Every parameter needs a gradient in every step.
    - ``"schedulefree_adamw"`` (package ``schedulefree``; Defazio et al., NeurIPS 2024, arXiv:2405.15682): AdamW that
      averages its weights in place of a schedule. It does need a learning rate, 1 to 10 times that of AdamW with a
      schedule, default 0.0025; a warm-up (``warmup_steps``) is recommended. The weights that it trains are not those
      to evaluate or to save: call ``optimizer.eval()`` before and ``optimizer.train()`` after, or use
      ``layertune.evaluation_weights``, which renews the statistics of batch norms too. The optimizer that this
      function returns is in train mode.
    - ``"dadapt_adam"`` (package ``dadaptation``; Defazio and Mishchenko, ICML 2023, arXiv:2301.07733): Adam with
      D-Adaptation. Pass ``lr=1.0`` or no ``lr``; its README recommends the schedule that the problem has otherwise.
      Where rates differ between groups, the ratios become the package's ``layer_scale``. Weight decay is coupled
      unless ``decouple=True``.

    Args:
        name: The name of the optimizer, one of those above.
        params: A module, whose trainable parameters are taken; or parameters; or param groups, for instance of
            ``layertune.param_groups(model, layers, lr=1.0)``.
        lr: The learning rate of groups without a rate of their own. Default: the one that is recommended.
        **options: Further options of the package's class, for instance ``weight_decay``.

    Returns:
        The optimizer.

    Raises:
        MissingPackageError: The package is not installed, or too old. The message holds the line that installs it.
        OptimizerError: The name is unknown, there is no trainable parameter, a rate is not above 0, the groups do not
            fit the optimizer, or the package refuses an option.

    Warns:
        UserWarning: The optimizer estimates its own step size, and a rate is far from the recommended one.

    Example:
        >>> optimizer = make_optimizer("prodigy", nn.Linear(2, 1))
        >>> type(optimizer).__name__, optimizer.param_groups[0]["lr"]
        ('Prodigy', 1.0)
    """
    known = _known(name)
    optimizer_class = known.load()
    groups = _groups_of(name, params, known.lr if lr is None else lr)
    if known.estimates:
        _warn_of_far_rates(name, groups, known.lr)
    prepared = known.prepare(name, groups)
    try:
        with redirect_stdout(io.StringIO()):  # Prodigy and D-Adaptation print a line if weights decay
            optimizer = optimizer_class(prepared, lr=known.lr if lr is None else lr, **options)
    except (TypeError, ValueError) as error:
        raise OptimizerError(f"{name} refuses its options {options}: {error}; see {known.source}") from error
    if name == "ldog":
        optimizer.register_step_pre_hook(_require_gradients)
    if name == "schedulefree_adamw":
        mode_of(optimizer).train()
    return optimizer


def _known(name: str) -> OptimizerPackage:
    if name not in OPTIMIZERS:
        raise OptimizerError(f"there is no optimizer {name!r}; the names are {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]


def _groups_of(name: str, params: Any, lr: float) -> Groups:
    """Return param groups of trainable parameters, each with a rate."""
    given: list[Any] = list(params.parameters() if isinstance(params, nn.Module) else params)
    listed: Groups = given if given and isinstance(given[0], Mapping) else [{"params": given}]
    groups = [{"lr": lr, **group, "params": _trainable(group["params"])} for group in listed]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise OptimizerError(f"{name} got no parameter that requires a gradient; undo the freezing, or choose layers")
    wrong = [group["lr"] for group in groups if not 0 < group["lr"] < float("inf")]
    if wrong:
        raise OptimizerError(f"{name} needs learning rates that are finite and above 0, not {wrong[0]}")
    return groups


def _trainable(params: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [p for p in ([params] if isinstance(params, Tensor) else params) if p.requires_grad]


def _warn_of_far_rates(name: str, groups: Groups, recommended: float) -> None:
    rates = {group["lr"] for group in groups}
    far = [rate for rate in rates if not recommended / FAR <= rate <= recommended * FAR]
    if len(far) == len(rates):  # one group near it is enough: the others are meant relative to that one
        warnings.warn(
            f"{name} estimates its own step size, and lr={min(far):g} multiplies it; pass lr={recommended:g}, unless "
            "you want steps that are so much smaller or larger",
            UserWarning,
            stacklevel=3,
        )


def _any_rates(name: str, groups: Groups) -> Groups:  # noqa: ARG001 - a check like the others
    return groups


def _one_rate(name: str, groups: Groups) -> Groups:
    rates = {group["lr"] * group.get("lr_scale", 1.0) for group in groups}
    if len(rates) > 1:
        raise OptimizerError(
            f"{name} takes one learning rate for all groups, and these have {min(rates):g} to {max(rates):g}; give all "
            "layers one rate, or use prodigy_split"
        )
    return groups


def _rates_as_scales(name: str, groups: Groups) -> Groups:
    """Write the ratios of rates as ``layer_scale``, since D-Adaptation refuses groups of different ``lr``."""
    if any(group.get("lr_scale", 1.0) != 1.0 for group in groups):
        raise OptimizerError(
            f"{name} cannot have groups whose rates a scheduler scales (lr_scale); give each group its own lr, as in "
            "layertune_timm.layer_decay(rate, lr=1.0)"
        )
    largest = max(group["lr"] for group in groups)
    return [{"layer_scale": group["lr"] / largest, **group, "lr": largest} for group in groups]


def _require_gradients(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a step in which L-DoG would fail in the midst of its arithmetic, without a word on the reason."""
    if len(args) > 1 or kwargs.get("closure") is not None:
        return  # the gradients come with the closure
    grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
    present = [grad for grad in grads if grad is not None]
    missing = len(grads) - len(present)
    if missing:
        raise OptimizerError(
            f"ldog needs a gradient for each of its {len(grads)} parameters in every step, and {missing} have none; "
            "give it only parameters that the loss depends on"
        )
    if not get_total_norm(present).isfinite():
        raise OptimizerError(
            "ldog got gradients that are not finite, so the training has diverged; make the first step smaller, as in "
            "reps_rel=1e-8"
        )


def _package(name: str, distribution: str, lowest: str, module: str) -> Plugin:
    return Plugin(name=name, distribution=distribution, lowest=lowest, module=module, extra="optimizers")


PRODIGY = _package("Prodigy", "prodigyopt", "1.1", "prodigyopt")
PRODIGY_README = "https://github.com/konstmish/prodigy"

OPTIMIZERS: dict[str, OptimizerPackage] = {
    "prodigy": OptimizerPackage(
        package=PRODIGY, class_name="Prodigy", lr=1.0, estimates=True, prepare=_one_rate, source=PRODIGY_README
    ),
    "prodigy_split": OptimizerPackage(
        package=PRODIGY,
        class_name="SplitProdigy",
        lr=1.0,
        estimates=True,
        prepare=_any_rates,
        source=PRODIGY_README,
        module="layertune.hosts.split_prodigy",
    ),
    "ldog": OptimizerPackage(
        package=_package("L-DoG", "dog-optimizer", "1.0.3", "dog"),
        class_name="LDoG",
        lr=1.0,
        estimates=True,
        prepare=_any_rates,
        source="https://github.com/formll/dog",
    ),
    "schedulefree_adamw": OptimizerPackage(
        package=_package("Schedule-free AdamW", "schedulefree", "1.4", "schedulefree"),
        class_name="AdamWScheduleFree",
        lr=0.0025,
        estimates=False,
        prepare=_any_rates,
        source="https://github.com/facebookresearch/schedule_free",
    ),
    "dadapt_adam": OptimizerPackage(
        package=_package("D-Adaptation", "dadaptation", "3.2", "dadaptation"),
        class_name="DAdaptAdam",
        lr=1.0,
        estimates=True,
        prepare=_rates_as_scales,
        source="https://github.com/facebookresearch/dadaptation",
    ),
}
"""The optimizers that ``make_optimizer`` knows, by name."""
