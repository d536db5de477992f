"""timm's factory of optimizers, for the length of a ``with`` block, with a scheme of layers and learned rates."""

import functools
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import timm.optim
import timm.utils
from torch import nn
from torch.optim import Optimizer

import layertune_timm
from layertune import MetaLR, OptimizerError
from layertune.layers.names import named_parameters, unwrap
from layertune.policies.freezing import Frozen
from layertune_timm.report import log_rates, write_report
from layertune_timm.train_options import Scheme

__all__ = ["LayerwiseFactory"]


class LayerwiseFactory:
    """Within it, ``timm.optim.create_optimizer_v2`` groups parameters by a scheme and attaches ``MetaLR``.

    Layers that the scheme leaves out are frozen: else their gradients would pile up, since the optimizer that clears
    gradients does not know them, and ``--clip-grad`` would count them. On leaving, timm's functions, the optimizer and
    the frozen layers are as before.

    Args:
        scheme: which layers train.
        metalr: settings of ``MetaLR``; ``None`` for no learning.

    Attributes:
        optimizer: what was made, if any.
        metalr: what is attached to it, if anything.
        folder: the output folder, in the process that opened one.

    Example:
        >>> import timm
        >>> with LayerwiseFactory(Scheme("last_layer"), None) as factory:
        ...     optimizer = timm.optim.create_optimizer_v2(timm.create_model("resnet18"), "sgd", lr=0.1)
        >>> {group["layer"] for group in optimizer.param_groups}
        {'fc'}
    """

    def __init__(self, scheme: Scheme, metalr: dict[str, Any] | None) -> None:
        self.scheme = scheme
        self.settings = metalr
        self.optimizer: Optimizer | None = None
        self.metalr: MetaLR | None = None
        self.folder: Path | None = None
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        self._replace(timm.optim, "create_optimizer_v2", self._create)
        self._replace(timm.utils, "get_outdir", self._open_folder)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._undo.close()

    def report(self) -> None:
        """Log what was learned, and write profile and figure beside timm's checkpoints."""
        if self.metalr is not None and self.folder is not None:
            log_rates(self.metalr)
            write_report(self.metalr, self.folder)

    def _replace(self, module: Any, name: str, by: Any) -> None:
        own = getattr(module, name)
        self._undo.callback(setattr, module, name, own)
        setattr(module, name, functools.update_wrapper(functools.partial(by, own), own))

    def _open_folder(self, own: Any, *args: Any, **kwargs: Any) -> Any:
        folder = own(*args, **kwargs)
        self.folder = Path(folder)
        return folder

    def _create(self, own: Any, model_or_params: Any, *args: Any, **kwargs: Any) -> Optimizer:
        if kwargs.get("layer_decay") is not None:
            raise OptimizerError(
                f"timm's --layer-decay and --param-groups both group parameters by layer; leave --layer-decay away, or "
                f"use --param-groups layer_decay:{kwargs['layer_decay']}"
            )
        if not isinstance(model_or_params, nn.Module):
            raise OptimizerError(
                "parameters are grouped by layer where create_optimizer_v2 takes the model, not "
                f"{type(model_or_params).__name__}"
            )
        grouper = self._grouper(model_or_params, kwargs)
        optimizer: Optimizer = own(model_or_params, *args, **{**kwargs, "param_group_fn": grouper})
        self._undo.enter_context(_left_out(model_or_params, optimizer))
        if self.settings is not None:
            self.metalr = MetaLR(optimizer, **self.settings)
            self._undo.callback(self.metalr.detach)
        self.optimizer = optimizer
        return optimizer

    def _grouper(self, model: nn.Module, kwargs: dict[str, Any]) -> Any:
        fallback = set(kwargs.get("fallback_list", ()))
        if kwargs.get("fallback_no_weight_decay"):
            fallback |= set(getattr(unwrap(model), "no_weight_decay", tuple)())
        factory = getattr(layertune_timm, self.scheme.factory)
        return factory(*self.scheme.numbers, coarse=self.scheme.coarse, fallback=fallback)


def _left_out(model: nn.Module, optimizer: Optimizer) -> Frozen:
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    parameters = named_parameters(unwrap(model)).items()
    return Frozen({name: p for name, p in parameters if p.requires_grad and id(p) not in trained})
