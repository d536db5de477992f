"""The spelling of methods: the package's own in files and tables, that of version 0.1 in the names of trials."""

from collections.abc import Mapping, Sequence
from typing import Any

from layertune.policies.by_name import method_name
from layertune_studies.config.methods import METHOD_KINDS

__all__ = ["KINDS", "spell_names", "stored_kinds"]

KINDS = tuple(method_name(kind) for kind in METHOD_KINDS)
"""The kinds of methods as files write them."""

# A trial's file name holds a digest of its method. So the kind keeps its old spelling in the model, and results that
# were computed by version 0.1 are found.
STORED = dict(zip(KINDS, METHOD_KINDS, strict=True))


def stored_kinds(methods: Any) -> Any:
    """Replace the kind of each method by its stored spelling, before pydantic reads the methods."""
    if not isinstance(methods, Sequence) or isinstance(methods, str):
        return methods
    return [_with_stored_kind(method) if isinstance(method, Mapping) else method for method in methods]


def _with_stored_kind(method: Mapping[Any, Any]) -> dict[Any, Any]:
    kind = method.get("kind")
    return {**method, "kind": STORED.get(method_name(kind), kind)} if isinstance(kind, str) else dict(method)


def spell_names(names: Any) -> Any:
    """Replace the names of methods by their one spelling."""
    is_list = isinstance(names, Sequence) and not isinstance(names, str)
    return [method_name(name) if isinstance(name, str) else name for name in names] if is_list else names
