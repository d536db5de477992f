"""Methods of fine-tuning for other people's bundles: their settings, and the handlers that carry them out."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from layertune import LayertuneError
from layertune.metalr.settings import MetaLRSettings
from layertune.policies.by_name import METHODS, method_name, scheme
from layertune_monai.bundle.switches import check_switches
from layertune_monai.errors import BundleError
from layertune_monai.handlers.layer_freeze import LayerFreezeHandler
from layertune_monai.handlers.metalr import MetaLRHandler

__all__ = ["Method", "method_handlers"]

LOADING = ("weights", "prefix", "allow_partial")
FREEZING = ("bidirectional", "layer_wise", "last_layer")


@dataclass(frozen=True, kw_only=True)
class Method:
    """Hold a method of fine-tuning and its settings, which are checked when the record is made.

    Attributes:
        method: The name of the method, one of ``layertune.policies.by_name.METHODS``.
        depth: How a method that freezes layers counts depth: ``"I1"`` or ``"I2"``. ``None`` stands for ``"I1"``.
        m: The shallowest frozen depth of ``"bidirectional"``. By default the middle third is frozen.
        n: The deepest frozen depth of ``"bidirectional"``.
        first: The shallowest trained depth of ``"layer_wise"``. By default the deeper half is trained.
        hyper_lr: The step size of learned rates. ``None`` uses the default of the rule.
        rule: The rule by which rates are learned: ``"joint"``, ``"cosine"``, ``"proportional"`` or ``"additive"``.
            ``None`` uses the default. The first two do not depend on the scale of the bundle's loss.
        every: Rates are learned at each ``every``-th step. ``None`` uses the default.

    Raises:
        LayertuneError: A setting is out of range or does not belong to the method.
    """

    method: str = "metalr"
    depth: str | None = None
    m: int | None = None
    n: int | None = None
    first: int | None = None
    hyper_lr: float | None = None
    rule: str | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", method_name(self.method))
        if self.method not in METHODS:
            raise BundleError(f"method is one of {', '.join(METHODS)}, not {self.method!r}")
        scheme(self.method, m=self.m, n=self.n, first=self.first)
        check_switches(self.method, hyper_lr=self.hyper_lr, rule=self.rule, every=self.every)
        if self.depth is not None and self.method not in FREEZING:
            methods = " or ".join(FREEZING)
            raise BundleError(
                f"depth={self.depth} belongs to the method {methods}, not to {self.method!r}; leave it out"
            )
        if self.depth not in (None, "I1", "I2"):
            raise BundleError(f"depth is I1 (order of execution) or I2 (resolution level), not {self.depth!r}")
        MetaLRSettings.given(hyper_lr=self.hyper_lr, rule=self.rule, every=self.every)

    def settings(self) -> dict[str, Any]:
        """Return all settings by name."""
        return asdict(self)

    def handlers(self, optimizer: Optimizer, output_dir: str | Path | None = None) -> list[Any]:
        """Build the handlers that carry out the method: one, or none for ``"all_layers"``.

        Args:
            optimizer: The optimizer that the trainer steps.
            output_dir: The folder for the learned rates.
        """
        if self.method == "all_layers":
            return []
        if self.method.startswith("metalr"):
            return [
                MetaLRHandler(
                    optimizer,
                    output_dir=output_dir,
                    streaming=self.method == "metalr_streaming",
                    hyper_lr=self.hyper_lr,
                    rule=self.rule,
                    every=self.every,
                )
            ]
        policy = scheme(self.method, m=self.m, n=self.n, first=self.first)
        return [LayerFreezeHandler(policy, depth="I2" if self.depth == "I2" else "I1")]


def method_handlers(
    *,
    optimizer: Optimizer,
    handlers: Iterable[Any] | None = None,
    output_dir: str | Path | None = None,
    **settings: Any,
) -> list[Any]:
    """Return the handlers of a method, followed by the trainer's own.

    This is the component that ``layertune monai adapt`` writes into a bundle's configuration. Its settings are the
    switches of the adaptation, as in ``--layertune#method last_layer``.

    Args:
        optimizer: The optimizer that the trainer steps.
        handlers: The trainer's own handlers. They come last, because bundles for several GPUs drop the last handlers in
            all processes but the first.
        output_dir: The folder for the learned rates.
        **settings: The method and its settings; see ``Method``. ``weights``, ``prefix`` and ``allow_partial`` are
            allowed too: ``load_pretrained`` reads these switches in the same configuration.

    Raises:
        BundleError: A setting is unknown, out of range, or does not belong to the method.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> [type(handler).__name__ for handler in method_handlers(optimizer=optimizer, method="last_layer")]
        ['LayerFreezeHandler']
        >>> method_handlers(optimizer=optimizer, metod="last_layer")
        Traceback (most recent call last):
        layertune_monai.errors.BundleError: layertune has no switch metod; its switches are method, depth, m, n, ...
    """
    known = [*(field.name for field in fields(Method)), *LOADING]
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise BundleError(
            f"layertune has no switch {', '.join(unknown)}; its switches are {', '.join(known)}, as in "
            "--layertune#method last_layer"
        )
    try:
        method = Method(**{name: value for name, value in settings.items() if name not in LOADING})
    except LayertuneError as error:
        raise BundleError(
            f"{error} (to take back a setting that configs/layertune.json holds, run `layertune monai adapt` again)"
        ) from None
    return [*method.handlers(optimizer, output_dir), *(handlers or ())]
