"""The base of all sections of a study's file, types for their values, and hints at misspelt names."""

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = [
    "Count",
    "Fraction",
    "Positive",
    "Section",
    "Several",
    "Some",
    "nearest",
    "new_key",
    "problem_message",
    "several",
    "some",
]

Value = TypeVar("Value")
Values = TypeVar("Values", bound=tuple[Any, ...])


class Section(BaseModel):
    """A section of a study's file, which refuses unknown keys and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def some(values: Values) -> Values:
    """Return the values, of which there must be at least one.

    Raises:
        ValueError: There is none.
    """
    if not values:
        raise ValueError("this list is empty; give at least one value, or leave the key out if it has a default")
    return values


def several(values: Values) -> Values:
    """Return the values, of which there must be at least one, and each once: equal ones would be the same trial.

    Raises:
        ValueError: There is none, or one is given twice.

    Example:
        >>> several((0.01, 1e-2))
        Traceback (most recent call last):
        ValueError: 0.01 is given twice; leave one of them out
    """
    doubled = [value for number, value in enumerate(some(values)) if value in values[:number]]
    if doubled:
        raise ValueError(f"{doubled[0]} is given twice; leave one of them out")
    return values


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint at the known name that was probably meant; empty if none is similar.

    Example:
        >>> nearest("sedes", ["seeds", "name"])
        '; did you mean seeds?'
    """
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def problem_message(problem: Any, where: str, *, owner: str, keys: Iterable[str]) -> str:
    """Return what is wrong at one place of a file, in a sentence for the user.

    Args:
        problem: One of the errors of pydantic's ``ValidationError``.
        where: The place in the file, as the user reads it.
        owner: What the file describes, with its article.
        keys: The keys that are known at the place.

    Example:
        >>> problem = {"type": "extra_forbidden", "loc": ("sedes",)}
        >>> problem_message(problem, "sedes", owner="a study", keys=["seeds", "name"])
        'sedes is no key of a study; did you mean seeds?; here there are seeds, name'
    """
    if problem["type"] == "extra_forbidden":
        known = list(keys)
        hint = nearest(str(problem["loc"][-1]), known)
        return f"{where} is no key of {owner}{hint}; here there are {', '.join(known)}"
    if problem["type"] == "missing":
        return f"{where} is missing"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}"


def new_key(default: Any) -> Any:
    """Declare a key that dumps leave out at its default, so that results from before it was known keep their names.

    Args:
        default: The value of the key where a study's file does not give it.

    Example:
        >>> class Newer(Section):
        ...     old: int = 1
        ...     new: int = new_key(2)
        >>> Newer().model_dump(), Newer(new=3).model_dump()
        ({'old': 1}, {'old': 1, 'new': 3})
    """
    return Field(default=default, exclude_if=lambda value: value == default)


Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Some: TypeAlias = Annotated[tuple[Value, ...], AfterValidator(some)]
Several: TypeAlias = Annotated[tuple[Value, ...], AfterValidator(several)]
