"""Tokenizers that would fill the memory with a prompt, or never end with it."""

import base64
import json

import pytest

from wanvideo.errors import CheckpointError
from wanvideo.synthetic.tokenizer import sentencepiece_model, write_tokenizer
from wanvideo.text.tokenizer import from_sentencepiece, load_tokenizer
from wanvideo.text.tokenizer_steps import wrong_step


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def precompiled(*texts):
    """A table of characters with an empty trie."""
    table = (1024).to_bytes(4, "little") + bytes(1024) + b"\0".join([*texts, b""])
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}


def sequence(*steps):
    return {"type": "Sequence", "normalizers": list(steps)}


BOOK = replace({"String": "a"}, "a" * 10_000)
STEPS = {
    "a book for a letter": ("normalizer", sequence(BOOK, BOOK), r"never end \(Replace\)"),
    "a text between all letters": ("normalizer", replace({"String": ""}, "a"), r"\(Replace\)"),
    "a pattern that tries all ways": ("normalizer", replace({"Regex": "(a+)+$"}, "a"), r"\(Replace\)"),
    "a pattern to cut by": ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a+)+$"}}, r"\(Split\)"),
    "a table of books": ("normalizer", precompiled(b"a" * 10_000), r"\(Precompiled\)"),
    "a table that is none": ("normalizer", {"type": "Precompiled", "precompiled_charsmap": 7}, r"\(Precompiled\)"),
    "two tables": ("normalizer", sequence(precompiled(b"aa"), precompiled(b"aa")), "more than one table"),
    "many steps": ("normalizer", sequence(*[{"type": "NFC"}] * 100), "more than 16 steps"),
    "many pieces": (
        "post_processor", {"type": "TemplateProcessing", "single": [{}] * 10**5}, r"\(TemplateProcessing\)",
    ),
    "nothing": ("normalizer", [], r"\(None\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", STEPS)
def test_steps_that_grow_or_last_are_refused(tmp_path, case):
    part, step, message = STEPS[case]
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), part: step}))
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(path)


def test_steps_of_published_tokenizers_are_known():
    strip = {"type": "Strip", "strip_left": False, "strip_right": True}
    known = sequence(precompiled(b"fi", "\ufdfa".encode() * 11), strip, replace({"Regex": " {2,}"}, "\u2581"))
    cut = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Metaspace"}]}
    assert wrong_step({"normalizer": known, "pre_tokenizer": cut, "post_processor": None}) is None


def test_a_table_of_a_sentencepiece_model_is_bounded_too():
    table = (4).to_bytes(4, "little") + bytes(4) + b"a" * 10_000 + b"\0"
    inner = b"\x12" + varint(len(table)) + table
    with pytest.raises(CheckpointError, match="could fill the memory"):
        from_sentencepiece(sentencepiece_model() + b"\x1a" + varint(len(inner)) + inner, "spiece.model")


def varint(value):
    return bytes([value & 127 | 128, value >> 7 & 127 | 128, value >> 14])
