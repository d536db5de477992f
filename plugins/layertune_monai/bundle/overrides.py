"""Overrides of a configuration that nothing reads: misspelt names, and names of another bundle.

MONAI adds an override such as ``--metod last`` to the configuration, whether or not anything there reads it.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigComponent, ConfigParser, ReferenceResolver

from layertune_monai.errors import BundleError

__all__ = ["check_overrides", "unknown_names"]

SEPARATOR = ReferenceResolver.sep
EVALUATED = ("$", "@", "%")
"""First characters of the strings that MONAI evaluates or replaces."""


TRACKING = {"experiment_name", "run_name", "save_execute_config", "tracking_uri"}
"""Names that MONAI's ``--tracking`` adds, whether or not it finds a trainer whose handlers read them."""


def check_overrides(bundle_root: str | Path = ".", files: Sequence[str] = (), *, handlers: Sequence[str] = ()) -> None:
    """Refuse an override that nothing in the running configuration reads.

    Call it from a configuration. A name is known if a file in ``configs/`` holds it. Any other name has to be read by
    the configuration, as in ``"@name"``, or to hold an expression or a component. An unknown argument of a component is
    passed to it, so the component refuses it.

    Args:
        bundle_root: The root of the bundle.
        files: Configurations outside of ``configs/``, relative to the root.
        handlers: The ids of handlers that the configuration has to use. MONAI's ``--tracking`` replaces the handlers of
            a trainer that does not read them from ``train#handlers``.

    Raises:
        BundleError: A plain value has an unknown name that nothing refers to, the handlers are not used, or the root
            holds no configuration.
    """
    parser = _calling_parser()
    if parser is None:
        return
    content = {name: value for name, value in parser.get().items() if name != ConfigParser.meta_key}
    known = _known_ids(Path(bundle_root), files)
    references = {reference for text in _strings(content) for reference in ReferenceResolver.match_refs_pattern(text)}
    unread = [name for name in _added_values(content, known) if not _is_read(name, references)]
    if unread:
        raise unknown_names(unread, content)
    unused = [name for name in handlers if name not in references]
    if unused:
        raise BundleError(
            f"the trainer does not use the handlers @{', @'.join(unused)} any more, because an override or --tracking "
            "has replaced them; leave it out, or let the trainer read its handlers from train#handlers"
        )


def unknown_names(names: Sequence[str], content: Mapping[str, Any]) -> BundleError:
    """Return the error about overrides with unknown names, with the known names.

    Args:
        names: The ids of the unknown overrides.
        content: The bundle's configuration, whose keys are the known names.

    Example:
        >>> print(unknown_names(["metod"], {"method": "all_layers", "lr": 0.1}))
        nothing in this configuration reads metod; did you mean method? Known names: method, lr
    """
    shown = [name.replace(SEPARATOR, "#") for name in names]
    known = [name for name in _value_names(content) if name not in shown]
    by_last_part = {name.rpartition("#")[2]: name for name in reversed(known)}
    close = [
        by_last_part[match] for name in shown for match in get_close_matches(name.rpartition("#")[2], by_last_part, n=1)
    ]
    hint = f"did you mean {', '.join(close)}? " if close else ""
    return BundleError(f"nothing in this configuration reads {', '.join(shown)}; {hint}Known names: {', '.join(known)}")


def _calling_parser() -> ConfigParser | None:
    """Return the parser whose configuration called this module; ``None`` for a call from elsewhere.

    MONAI gives neither the overrides nor the merged configuration to what a configuration calls
    (``ReferenceResolver._resolve_one_item``), so the frames of the callers are searched.
    """
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigParser):
            return owner
        frame = frame.f_back
    return None


def _known_ids(root: Path, files: Sequence[str]) -> set[str]:
    paths = {path for path in (root / "configs").glob("*") if path.suffix in (".json", ".yaml", ".yml")}
    known: set[str] = set()
    for path in paths | {root / name for name in files}:
        with suppress(OSError, ValueError, yaml.YAMLError):  # what cannot be read is not the configuration that runs
            known |= set(_ids(ConfigParser.load_config_file(path)))
    if not known:
        raise BundleError(
            f"there is no configuration of a bundle in {root.resolve()}; run in the bundle's folder, or name that "
            "folder: --bundle_root DIR"
        )
    return known | TRACKING


def _ids(content: Any, place: str = "") -> Iterator[str]:
    """Yield the ids of all values in a mapping, those of the sections included, but none inside a component."""
    if not isinstance(content, dict) or ConfigComponent.is_instantiable(content):
        return
    for key, value in content.items():
        parts = ReferenceResolver.split_id(f"{place}{str(key).removeprefix('+')}")  # "+" appends to what is there
        yield from (SEPARATOR.join(parts[:end]) for end in range(1, len(parts) + 1))
        yield from _ids(value, f"{SEPARATOR.join(parts)}{SEPARATOR}")


def _added_values(content: dict[str, Any], known: set[str], place: str = "") -> Iterator[str]:
    """Yield the ids of plain values that the bundle's own files do not hold."""
    for key, value in content.items():
        name = f"{place}{key}"
        if name not in known:
            if _is_plain(value):
                yield name
        elif isinstance(value, dict) and not ConfigComponent.is_instantiable(value):
            yield from _added_values(value, known, f"{name}{SEPARATOR}")


def _is_plain(value: Any) -> bool:
    if ConfigComponent.is_instantiable(value):
        return False
    return not any(text.startswith(EVALUATED) for text in _strings(value))


def _is_read(name: str, references: set[str]) -> bool:
    return any(
        f"{name}{SEPARATOR}".startswith(f"{reference}{SEPARATOR}")
        or f"{reference}{SEPARATOR}".startswith(f"{name}{SEPARATOR}")
        for reference in references
    )


def _strings(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            yield from _strings(part)


def _value_names(content: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """Yield the names of values that are neither lists of steps nor parts: the switches of a configuration."""
    for key, value in content.items():
        if key == "layertune" and isinstance(value, dict):
            yield from _value_names({name: part for name, part in value.items() if name != "_target_"}, "layertune#")
        elif not isinstance(value, dict) and key != "imports" and (not isinstance(value, list) or _is_plain(value)):
            yield f"{place}{key}"
