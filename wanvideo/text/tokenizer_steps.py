"""What a tokenizer's file may do to a text: the steps that UMT5's takes, and those near them; none lasts or grows.

The library that runs them takes any: one that puts a book in place of a letter fills the memory with a prompt, and a
pattern that tries all ways through it never ends.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Any

INSIDE = ("normalizers", "pretokenizers", "processors")  # keys of a Sequence
KNOWN = {
    "normalizer": (
        "Sequence", "Precompiled", "Strip", "Replace", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents",
    ),
    "pre_tokenizer": ("Sequence", "Metaspace", "WhitespaceSplit", "Whitespace"),
    "post_processor": ("Sequence", "TemplateProcessing"),
}  # fmt: skip
PATTERNS = (" {2,}", " +", r"\s{2,}", r"\s+")  # that a Replace may look for by
MOST_STEPS, MOST_PIECES = 16, 8
LONGEST_BYTES = 128  # of what stands for a character; in Unicode that is 33


def wrong_step(tokenizer: dict[str, Any]) -> str | None:
    """What of a tokenizer.json is not known here, for the end of a sentence; None: nothing."""
    for part, known in KNOWN.items():
        steps = list(_steps(tokenizer.get(part)))
        if len(steps) > MOST_STEPS:
            return f"more than {MOST_STEPS} steps in its {part}"
        for step in steps:
            kind = step.get("type") if isinstance(step, dict) else None
            if kind not in known or not _is_bounded(kind, step):
                return f"a step in its {part} that could fill the memory or never end ({str(kind)[:40]})"
        if sum(step["type"] == "Precompiled" for step in steps) > 1:
            return f"more than one table of characters in its {part}"
    return None


def is_bounded_table(table: bytes) -> bool:
    """Whether a table of SentencePiece puts short texts in place of characters: a trie, behind its length, then texts,
    each up to a NUL."""
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return max(map(len, texts.split(b"\0"))) <= LONGEST_BYTES


def _steps(part: Any) -> Iterator[Any]:
    """A part's steps, those of a Sequence after it; one more than are allowed of a part that has more."""
    waiting, count = [] if part is None else [part], 0
    while waiting and count <= MOST_STEPS:
        step, count = waiting.pop(), count + 1
        yield step
        inner = (step.get(key) for key in INSIDE) if isinstance(step, dict) else ()
        waiting += [item for items in inner if isinstance(items, list) for item in items[: MOST_STEPS + 1]]


def _is_bounded(kind: str, step: dict[str, Any]) -> bool:
    if kind == "Replace":
        pattern, content = step.get("pattern"), step.get("content")
        look = list(pattern.items()) if isinstance(pattern, dict) else []
        is_known = len(look) == 1 and (look[0][1] in PATTERNS if look[0][0] == "Regex" else bool(look[0][1]))
        return is_known and isinstance(content, str) and len(content) <= 1
    if kind == "Precompiled":
        try:
            return is_bounded_table(base64.b64decode(step.get("precompiled_charsmap") or ""))
        except (binascii.Error, TypeError, ValueError):
            return False
    if kind == "TemplateProcessing":
        return isinstance(step.get("single"), list) and len(step["single"]) <= MOST_PIECES
    return True
