"""What the library says, in the page's language: whole sentences by their templates, in locales/<language>/errors.json.

A template is an English message with {0}, {1}, ... where values stand; its translation has the same ones in any order.
`messages` there are whole errors, `phrases` parts of them and warnings: values (a hint, a kind of file) are translated
too.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

LOCALES = Path(__file__).resolve().parent / "locales"
FIELD = re.compile(r"\{(\d+)\}")


def translate(message: str, language: str) -> str:
    """`message` in `language`; as it is where it has no translation."""
    for literals, theirs in _templates(language):
        values = _values(literals, message)
        if values is not None:
            return _filled(theirs, [translate(value, language) for value in values])
    return message


def _filled(template: str, values: list[str]) -> str:
    return FIELD.sub(lambda field: values[int(field[1])], template)


@cache
def _templates(language: str) -> tuple[tuple[tuple[str, ...], str], ...]:
    """(text between values, translation) of every template, those with most text of their own first."""
    path = LOCALES / language / "errors.json"
    tables: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known = (item for table in tables.values() for item in table.items())
    split = ((tuple(FIELD.split(template)[::2]), theirs) for template, theirs in known)
    return tuple(sorted(split, key=lambda item: -sum(map(len, item[0]))))


def _values(literals: tuple[str, ...], message: str) -> list[str] | None:
    """What stands between the literals of a template in `message`; None where it is another message."""
    if len(literals) == 1:
        return [] if message == literals[0] else None
    first, *middle, last = literals
    position, end = len(first), len(message) - len(last)
    if position > end or not (message.startswith(first) and message.endswith(last)):
        return None
    values = []
    for literal in middle:
        found = message.find(literal, position, end)
        if found < 0:
            return None
        values.append(message[position:found])
        position = found + len(literal)
    return [*values, message[position:end]]
