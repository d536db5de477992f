"""Read a section from a YAML file, with an error for the user where the file is wrong."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from layertune_studies.config.section import Section
from layertune_studies.errors import StudyError

__all__ = ["load_section"]

AnySection = TypeVar("AnySection", bound=Section)


def load_section(path: Path, section: type[AnySection], noun: str, message: Callable[[Any], str]) -> AnySection:
    """Read a section from its file and check it.

    Args:
        path: The YAML file of the user.
        section: The class of the section.
        noun: What the file describes, in one word, for messages.
        message: A function that turns one of the errors of pydantic's ``ValidationError`` into a sentence.

    Raises:
        StudyError: The file cannot be read, or a key or value is wrong; the message names the place.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} cannot be read ({error}); give the path of a {noun}'s YAML file") from error
    except yaml.YAMLError as error:
        raise StudyError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise StudyError(f"{path} holds no {noun}: a {noun} is a mapping with {', '.join(section.model_fields)}")
    try:
        return section.model_validate(content)
    except ValidationError as error:
        raise StudyError(f"{path}: {'; '.join(message(problem) for problem in error.errors())}") from error
