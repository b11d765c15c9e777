"""Prompts of a long video: one a window, or each from a time on; as a text of nodes, `A | [12.5] B | [1:05] C`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import checks
from .errors import InputError

SEPARATOR = "|"
TIME = re.compile(r"\[\s*(?:(?:(\d{1,3})\s*:)?\s*(\d{1,4})\s*:)?\s*(\d{1,7}(?:\.\d{1,6})?)\s*s?\s*\]")
MOST_S = 10**6
MAX_TEXT = 10**6  # characters of all prompts together


@dataclass(frozen=True)
class PromptList:
    """Texts, one a window, the last one for all that follow; with `starts`, each from a time on.

    Args: starts: seconds from which each text serves, the first 0, rising; empty: one a window.
    Raises: InputError for starts that do not fit the texts.
    """

    texts: tuple[str, ...]
    starts: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_starts(self.starts, len(self.texts))

    @classmethod
    def parse(cls, text: str) -> PromptList:
        """From a text of nodes: prompts parted by |, each of which may begin with a time in brackets."""
        checks.text("prompt", text, MAX_TEXT)
        parts = [part.strip() for part in text.split(SEPARATOR)]
        found = [TIME.match(part) for part in parts]
        if not any(found):
            return cls(tuple(parts))
        starts: list[float | None] = [None if match is None else _seconds(match) for match in found]
        starts[0] = starts[0] or 0.0
        texts = tuple(part[match.end() if match else 0 :].strip() for part, match in zip(parts, found, strict=True))
        late = next((part for part, start in zip(parts, starts, strict=True) if start is None), None)
        if late is not None:
            raise InputError(
                f"The prompt {checks.brief(late)} has no time, and others have. "
                "Give every prompt its time, or none for one a window."
            )
        return cls(texts, tuple(start for start in starts if start is not None))

    @property
    def is_writable(self) -> bool:
        """Whether no text has in it what parts or times prompts in a text of nodes."""
        return not any(SEPARATOR in text or TIME.match(text.strip()) for text in self.texts)

    def to_json(self) -> Any:
        """As "prompt" of a job has it."""
        if self.starts:
            return [{"from": start, "prompt": text} for start, text in zip(self.starts, self.texts, strict=True)]
        return self.texts[0] if len(self.texts) == 1 else list(self.texts)

    def __str__(self) -> str:
        """The text from which `parse` makes the same, where `is_writable`."""
        times = [f"[{_plain(start)}] " for start in self.starts] or [""] * len(self.texts)
        return f" {SEPARATOR} ".join(time + text for time, text in zip(times, self.texts, strict=True))


def check_starts(starts: Sequence[float], num_prompts: int) -> None:
    """Raises: InputError unless there are none, or one for each prompt, from 0 on and rising."""
    if not starts:
        return
    for start in starts:
        checks.number("prompt_starts", start, 0, MOST_S)
    if len(starts) != num_prompts or starts[0] != 0 or any(a >= b for a, b in zip(starts, starts[1:], strict=False)):
        raise InputError(
            f"The times {list(starts)} do not fit {num_prompts} prompts. "
            "Give every prompt its time, from 0 on and rising, or none for one a window."
        )


def _plain(seconds: float) -> str:
    """As TIME takes it: no exponent, and as many digits behind the point as it has, at most 6."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


def _seconds(match: re.Match[str]) -> float:
    hours, minutes, seconds = match.groups()
    return 3600.0 * int(hours or 0) + 60.0 * int(minutes or 0) + float(seconds)
