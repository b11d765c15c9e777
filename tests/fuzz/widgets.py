"""Widgets of every node with boundary values and wrong types, as a queued graph may have them."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from support.pack import NAME, load_pack

from wanvideo.errors import TalkError

NUMBERS = (
    0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 10**400, 0.0, -0.5, 1e308, float("nan"), float("inf"), -float("inf"),
)  # fmt: skip
TEXTS = (
    "", " ", "none", "None", "10", "9, 10", "1,,2", "\u0663", "\u00b2", "-1", "1" * 5000, "\0", "a\nb", "\ud800",
    "\u00e9" * 300, "x" * 5000, "../x", "..\\..\\x", "/etc/passwd", "/dev/zero", "C:\\Windows\\win.ini", "C:x",
    "\\\\server\\share\\x", "//server/x", "~", "~root/x", "$HOME", "%s%s%n", "{0}", "con", "a" * 255 + "/b",
    "file:///etc/passwd", "http://localhost/x", ".", "..", "/",
)  # fmt: skip
OTHERS = (None, True, False, [], ["1", 0], {}, {"a": 1}, b"x", (), 1j)
# Nodes whose function only makes settings: no model, sound or picture is needed to call it.
SETTINGS = (
    "WanVideoBlockSwap", "WanVideoVRAMManagement", "WanVideoTorchCompileSettings", "WanVideoTeaCache",
    "WanVideoMagCache", "WanVideoEasyCache", "WanVideoSLG", "WanVideoExperimentalArgs", "WanVideoScheduler",
    "WanVideoSchedulerv2", "WanVideoTalkingPreset",
)  # fmt: skip


def cases(random: random.Random, folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Endless (what is tried, the try); a try raises TalkError or returns an answer, and nothing else.

    Args: random: decides everything. folder: for what a case needs to find on the disk.
    """
    nodes = load_pack().NODE_CLASS_MAPPINGS
    validated = [name for name, node in nodes.items() if hasattr(node, "VALIDATE_INPUTS")]
    empty = folder / "empty.safetensors"
    empty.write_bytes(b"")
    texts = (*TEXTS, str(empty), str(folder))
    while True:
        if random.random() < 0.7:
            name = random.choice(validated)
            values = {item: _value(random, texts, spec) for item, spec in _named(nodes[name], random)}
            yield f"{name}.VALIDATE_INPUTS({values!r:.300})", partial(_try, partial(_validate, nodes[name], values))
        else:
            name = random.choice(SETTINGS)
            types = nodes[name].INPUT_TYPES()
            specs = {item: spec for item, spec in (types["required"] | types["optional"]).items() if _is_widget(spec)}
            converted = {item: _converted(_value(random, texts, spec), spec) for item, spec in specs.items()}
            call = getattr(nodes[name](), nodes[name].FUNCTION)
            yield f"{name}({converted!r:.300})", partial(_try, partial(call, **converted))


def _named(node: Any, random: random.Random) -> list[tuple[str, Any]]:
    """The inputs that a node's check names, some of them missing as they may be in a graph."""
    code = getattr(node.VALIDATE_INPUTS, "__func__").__code__
    names = code.co_varnames[1 : code.co_argcount]
    types = node.INPUT_TYPES()
    specs = types["required"] | types["optional"]
    return [(name, specs.get(name)) for name in names if random.random() < 0.9]


def _try(call: Callable[[], object]) -> object:
    """The pack has a copy of the library of its own, under its own name, and so errors of its own."""
    try:
        return call()
    except sys.modules[f"{NAME}.wanvideo.errors"].TalkError as error:
        raise TalkError(str(error)) from error


def _validate(node: Any, values: dict[str, Any]) -> None:
    answer = node.VALIDATE_INPUTS(**values)
    if answer is not True and not (isinstance(answer, str) and answer):
        raise AssertionError(f"the answer is {answer!r}")


def _is_widget(spec: Any) -> bool:
    return isinstance(spec[0], list) or spec[0] in ("INT", "FLOAT", "STRING", "BOOLEAN")


def _value(random: random.Random, texts: tuple[str, ...], spec: Any) -> Any:
    chance = random.random()
    if spec is not None and chance < 0.5:
        options = spec[1]
        edges = [options[edge] + step for edge in ("min", "max") if edge in options for step in (-1, 0, 1)]
        choices = [*(spec[0] if isinstance(spec[0], list) else ()), options.get("default"), *edges]
        return random.choice(choices)
    return random.choice(NUMBERS if chance < 0.65 else texts if chance < 0.9 else OTHERS)


def _converted(value: Any, spec: Any) -> Any:
    """As ComfyUI converts and checks it before a node's function is called."""
    kind, options = spec
    kinds = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
    try:
        value = value if isinstance(kind, list) else kinds[kind](value)
        if not isinstance(kind, list):
            is_inside = not (value < options.get("min", value) or value > options.get("max", value))
            return value if is_inside else options["default"]
        return value if value in kind else kind[0]
    except (TypeError, ValueError, OverflowError):
        return options.get("default")
