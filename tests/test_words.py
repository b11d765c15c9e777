"""Names are the field's words in American spelling (CONTRIBUTING.md): what was replaced does not come back."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [*sorted((ROOT / "wanvideo").rglob("*.py")), *sorted(ROOT.glob("nodes_*.py"))]
PART = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z0-9]+(?![a-z])")
BRITISH = re.compile(
    r"colour|neighbour|behaviour|(de|un)?(quant|normal|initial|optim|serial|material|recogn|vector|stabil|organ|minim|"
    r"maxim|synchron)is(e|ing|ation)"
)
# A part of a name, and what the field says.
PARTS = {
    **dict.fromkeys(("hear", "hears", "heard", "hearing", "listen", "listens", "understand"), "audio, extract, encode"),
    **dict.fromkeys(("relief", "reliefs", "relieve", "attempt", "attempts"), "fallback, retry"),
    **dict.fromkeys(("weigh", "weighed"), "sizes"),
    **dict.fromkeys(("arrive", "arrives", "visit", "visits", "visiting"), "load, stream"),
    **dict.fromkeys(("fold", "folds", "folded", "folding"), "absorb, absorbed"),
    **dict.fromkeys(("mark", "marks"), "indicator, marker"),
    **dict.fromkeys(("sided", "beside"), "branch, unmerged"),
    **dict.fromkeys(("twin", "twins"), "eager"),
    "fade": "rescale", "turned": "rotated, transposed", "opaque": "compile_disabled", "shown": "known_frames",
    "grey": "gray", "centre": "center", "centred": "centered", "labelled": "labeled",
}  # fmt: skip
NAMES = {
    "Held": "ModelHandle", "StepClock": "LoraSchedule", "LowRankSide": "LoraBranch", "Draw": "NoiseFn",
    "seeded_draw": "seeded_noise", "few_keys": "grouped_attention", "two_sets": "dual_context_attention",
    "attend_few": "grouped_attention", "attend_two": "dual_context_attention", "of_unit": "of_one_scale",
}  # fmt: skip


def defined(tree):
    """(line, name) of everything that a file gives a name to; names of other libraries may be read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno, node.asname


def wrong(name):
    """What to say instead, or None."""
    if name in NAMES:
        return NAMES[name]
    for part in map(str.lower, PART.findall(name)):
        if part in PARTS:
            return PARTS[part]
        if BRITISH.match(part):
            return "American spelling"
    return None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_names_are_the_fields(path):
    old = [
        f"{path.name}:{line} {name}: say {wrong(name)}"
        for line, name in sorted(set(defined(ast.parse(path.read_text(encoding="utf-8")))))
        if wrong(name)
    ]
    assert not old, "\n".join(old)


@pytest.mark.parametrize("name", ["quantiseRows", "match_colour", "heard", "few_keys", "_marks_of", "QuantisedRows"])
def test_old_words_are_found(name):
    assert wrong(name)


@pytest.mark.parametrize("name", ["quantize_rows", "color", "noise", "raised", "precise", "peak_bytes"])
def test_words_of_the_field_pass(name):
    assert wrong(name) is None
