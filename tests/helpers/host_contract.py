"""What the plug-in of every host owes, and how a test asks a host for it.

A new host adds a class to ``host_runs.py``.
"""

import ast
import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from layertune import MetaLRSettings
from layertune.hosts.alchemy_settings import AlchemySettings

__all__ = ["SETTINGS", "End", "Host", "left_behind", "numbers_in_source", "weights"]

SETTINGS = frozenset(
    {field.name for record in (MetaLRSettings, AlchemySettings) for field in fields(record)} | {"lam", "patience"}
) - {"seed"}
"""The settings whose defaults only the core has; nnU-Net's trainers call ``weight`` ``lam``. Much else has a seed."""


class End(NamedTuple):
    """The state when a run has ended and layertune is gone."""

    model: nn.Module
    optimizer: Optimizer
    lrs: dict[str, float]


class Host(ABC):
    """One host: the package of its plug-in, and runs of its own.

    Methods import the host, so they are called only where it is installed.
    """

    package: ClassVar[str]
    preset: ClassVar[str] = "usual"
    """The name of MetaLR's defaults in this host."""
    has_alchemy: ClassVar[bool] = True
    """Whether the plug-in runs the phases of Network Alchemy."""

    @abstractmethod
    def train(self, folder: Path, *, hyper_lr: float | None, first: int = 0, last: int = 4) -> End:
        """Train as the host's users do.

        Args:
            folder: The folder where the run's state is saved at its end.
            hyper_lr: The setting of the plug-in's MetaLR. With ``None`` the host trains without layertune.
            first: Where the run begins. Above 0 it starts from the state that the folder holds.
            last: Where the run ends. The unit is the host's own: a step or an epoch.
        """

    @abstractmethod
    def make(self, folder: Path, **settings: Any) -> None:
        """Make what a user gives settings of MetaLR to, and do nothing else with it."""

    def make_alchemy(self, folder: Path, **settings: Any) -> None:
        """Make what a user gives settings of Network Alchemy to, with epochs in number, and do nothing else with it."""
        raise NotImplementedError(f"{self.package} runs no phases")

    @abstractmethod
    def learn(self, folder: Path, **settings: Any) -> list[float]:
        """Train the toy of ``host_toy`` and return the rates from the first to the last layer."""


def weights(model: nn.Module) -> list[Tensor]:
    """Return parameters and buffers."""
    return list(model.state_dict().values())


def left_behind(end: End) -> list[str]:
    """Return what MetaLR left on the optimizer or the model: nothing, if all is well."""
    optimizer = end.optimizer
    hooks = [name for name, value in vars(optimizer).items() if name.endswith("_hooks") and value]
    keys = [f"group[{key!r}]" for group in optimizer.param_groups for key in group if key.startswith("meta")]
    state = [f"state[{key!r}]" for of in optimizer.state.values() for key in of if "meta" in str(key)]
    frozen = [name for name, parameter in end.model.named_parameters() if not parameter.requires_grad]
    return [*hooks, *keys, *state, *frozen]


def numbers_in_source(package: str) -> list[str]:
    """Return where a plug-in's source gives one of the ``SETTINGS`` a number: nowhere, if all is well."""
    folder = Path(str(importlib.import_module(package).__file__)).parent
    return [
        f"{file.relative_to(folder)}:{value.lineno} {name}"
        for file in sorted(folder.rglob("*.py"))
        for name, value in _given_values(ast.parse(file.read_text(encoding="utf-8")))
        if name in SETTINGS and _is_number(value)
    ]


def _given_values(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Yield the names and values of defaults, assignments and keywords in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            of_positional = [*node.posonlyargs, *node.args][::-1]
            yield from ((arg.arg, value) for arg, value in zip(of_positional, node.defaults[::-1], strict=False))
            pairs = zip(node.kwonlyargs, node.kw_defaults, strict=True)
            yield from ((arg.arg, value) for arg, value in pairs if value is not None)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            yield node.target.id, node.value
        elif isinstance(node, ast.Assign):
            yield from ((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.keyword) and node.arg is not None:
            yield node.arg, node.value


def _is_number(value: ast.expr) -> bool:
    inner = value.operand if isinstance(value, ast.UnaryOp) else value
    return isinstance(inner, ast.Constant) and type(inner.value) in (int, float)
