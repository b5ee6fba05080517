"""Annotations in JSON files, checked against an example before anything relies on them."""

import json
from pathlib import Path
from typing import Any

from mmvars.errors import InputError

__all__ = ['read_json']


def read_json(path: str | Path, what: str, example: Any) -> Any:
    """The content of a JSON file that is built like an example.

    Args:
        path: The file.
        what: It holds, for the message.
        example: Dicts with the keys that are needed, lists with one entry, which stands for all (no
            list may be empty), text and numbers.

    Raises:
        InputError: If there is no such file, or it holds anything else; shows the example.
    """
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        raise InputError(f'{str(path)!r} cannot be read: {error.strerror}') from error
    except ValueError as error:  # also where it is no text
        raise InputError(f'{str(path)!r} is no JSON file: {error}') from error
    if not _fits(content, example):
        raise InputError(
            f'{str(path)!r} holds no {what}: it must be built like {json.dumps(example)}'
        )
    return content


def _fits(content: Any, example: Any) -> bool:
    if isinstance(example, dict):
        return isinstance(content, dict) and all(
            key in content and _fits(content[key], value) for key, value in example.items()
        )
    if isinstance(example, list):
        entries = isinstance(content, list) and bool(content)
        return entries and all(_fits(entry, example[0]) for entry in content)
    return type(content) is type(example)
