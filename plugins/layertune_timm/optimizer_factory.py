"""timm's optimizer factory with a scheme of layers and learned rates, inside a ``with`` block."""

import functools
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import timm.optim
import timm.scheduler
import timm.utils
from torch import nn
from torch.optim import Optimizer

import layertune_timm
from layertune import MetaLR, OptimizerError
from layertune.layers.names import named_parameters, unwrap
from layertune.metalr.settings import MetaLRSettings
from layertune.policies.freezing import Frozen
from layertune_timm.opponents import EpochPhases, attach_opponent, follow_model
from layertune_timm.optimizers import register_optimizers
from layertune_timm.report import log_rates, save_rates
from layertune_timm.train_options import Opponent, Scheme

__all__ = ["LayerwiseFactory"]


class LayerwiseFactory:
    """Make ``timm.optim.create_optimizer_v2`` group parameters by a scheme and attach ``MetaLR``.

    Layers that the scheme leaves out are frozen. Otherwise their gradients would add up, because the optimizer, which
    clears gradients, does not hold them, and ``--clip-grad`` would count them. At the end of the block, timm's
    functions, the optimizer and the frozen layers are as before.

    Args:
        scheme: The grouper that says which layers train.
        metalr: The settings of ``MetaLR``, or None to learn no rates.
        opponent: A method of another paper that is attached too, or None.

    Attributes:
        optimizer: The optimizer that was made, or None.
        metalr: The attached ``MetaLR``, or None.
        phases: The phases of the opponent, or None.
        folder: The output folder, in the process that made it, or None.

    Example:
        >>> import timm
        >>> with LayerwiseFactory(Scheme("last_layer"), None) as factory:
        ...     optimizer = timm.optim.create_optimizer_v2(timm.create_model("resnet18"), "sgd", lr=0.1)
        >>> {group["layer"] for group in optimizer.param_groups}
        {'fc'}
    """

    def __init__(self, scheme: Scheme, metalr: MetaLRSettings | None, opponent: Opponent | None = None) -> None:
        self.scheme = scheme
        self.settings = metalr
        self.opponent = opponent
        self.optimizer: Optimizer | None = None
        self.metalr: MetaLR | None = None
        self.phases: EpochPhases | None = None
        self.folder: Path | None = None
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        self._replace(timm.optim, "create_optimizer_v2", self._create)
        self._replace(timm.utils, "get_outdir", self._open_folder)
        self._replace(timm.scheduler, "create_scheduler_v2", self._create_scheduler)
        register_optimizers()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._undo.close()

    def report(self) -> None:
        """Log the learned rates, and write them beside timm's checkpoints."""
        if self.metalr is not None and self.folder is not None:
            log_rates(self.metalr)
            save_rates(self.metalr, self.folder)

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
                f"timm's --layer-decay and --param-groups both group parameters by layer; leave --layer-decay out, or "
                f"use --param-groups layer_decay:{kwargs['layer_decay']}"
            )
        if not isinstance(model_or_params, nn.Module):
            raise OptimizerError(
                "create_optimizer_v2 groups parameters by layer if it gets the model, but it got a "
                f"{type(model_or_params).__name__}"
            )
        grouper = self._grouper(model_or_params, kwargs)
        optimizer: Optimizer = own(model_or_params, *args, **{**kwargs, "param_group_fn": grouper})
        self._undo.enter_context(_freeze_others(model_or_params, optimizer))
        if self.settings is not None:
            self.metalr = MetaLR(optimizer, settings=self.settings)
            self._undo.callback(self.metalr.detach)
        if self.opponent is not None:
            coarse = self.scheme.coarse
            self.phases, undo = attach_opponent(self.opponent, model_or_params, optimizer, coarse=coarse)
            self._undo.callback(undo)
        self._undo.callback(follow_model(optimizer, model_or_params))
        self.optimizer = optimizer
        return optimizer

    def _create_scheduler(self, own: Any, *args: Any, **kwargs: Any) -> Any:
        scheduler, epochs = own(*args, **kwargs)
        if self.phases is not None:
            self.phases.follow(scheduler)
        return scheduler, epochs

    def _grouper(self, model: nn.Module, kwargs: dict[str, Any]) -> Any:
        fallback = set(kwargs.get("fallback_list", ()))
        if kwargs.get("fallback_no_weight_decay"):
            fallback |= set(getattr(unwrap(model), "no_weight_decay", tuple)())
        factory = getattr(layertune_timm, self.scheme.factory)
        return factory(*self.scheme.numbers, coarse=self.scheme.coarse, fallback=fallback)


def _freeze_others(model: nn.Module, optimizer: Optimizer) -> Frozen:
    """Freeze the parameters that the optimizer does not hold."""
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    parameters = named_parameters(unwrap(model)).items()
    return Frozen({name: p for name, p in parameters if p.requires_grad and id(p) not in trained})
