"""Nodes: how a class becomes what ComfyUI asks for, and what they check and say alike."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import cache, wraps
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar, overload

from .nodes_common import begin_texts, page_language
from .nodes_messages import translate
from .wanvideo import checks
from .wanvideo.errors import InputError, TalkError, UnsupportedError
from .wanvideo.geometry import snap_frames
from .wanvideo.request import MAX_PROMPT

PACK = Path(__file__).resolve().parent
CATEGORY = "Talking Video"
LOADERS = f"{CATEGORY}/loaders"
DEVICES = ("main_device", "offload_device")
logger = logging.getLogger("wanvideo")
Socket = TypeVar("Socket")
Other = TypeVar("Other")


@cache
def texts(language: str = "en") -> dict[str, Any]:
    """Names, descriptions and tooltips of all nodes: the file that ComfyUI's page reads, and their only source."""
    return json.loads((PACK / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


class Node:
    """A node: inputs as class attributes, texts from locales/, results as ComfyUI wants them.

    REQUIRED, OPTIONAL: name -> what `whole`, `number`, `choice`, `flag`, `text`, `socket` or `Files` give.
    What is wrong is said in the page's language.
    """

    CATEGORY = CATEGORY
    DESCRIPTION = ""
    FUNCTION: str
    RETURN_TYPES: tuple[str | list[str], ...]
    RETURN_NAMES: tuple[str, ...]
    OUTPUT_TOOLTIPS: tuple[str, ...]
    REQUIRED: dict[str, Any] = {}
    OPTIONAL: dict[str, Any] = {}
    HIDDEN: dict[str, str] = {}

    def __init_subclass__(cls) -> None:
        own = texts().get(cls.__name__, {})
        cls.DESCRIPTION = own.get("description", "")
        if "outputs" in own:
            cls.OUTPUT_TOOLTIPS = tuple(output.get("tooltip", "") for output in own["outputs"].values())
        for name in (getattr(cls, "FUNCTION", ""), "check_lazy_status"):
            if name in vars(cls):
                function = vars(cls)[name]
                setattr(cls, name, _answering(function if name == "check_lazy_status" else _choosing(function)))

    @classmethod
    def known(cls, **given: Any) -> dict[str, Any]:
        """Of the widgets that VALIDATE_INPUTS names those whose value is known when a graph is queued: ComfyUI leaves
        out a missing one, which it answers itself, and gives None for a linked one.

        Raises: InputError for a value that the widget cannot have, which ComfyUI does not check for named ones.
        """
        values = {name: value for name, value in given.items() if value is not None}
        cls.check_widgets(**values)
        return values

    @classmethod
    def check_widgets(cls, **given: Any) -> None:
        """Raises: InputError for a value that its widget cannot have; ComfyUI checks none that is linked."""
        widgets = cls.REQUIRED | cls.OPTIONAL
        for name, value in given.items():
            _check_widget(name, value, *widgets[name])

    @classmethod
    def numbers(cls) -> dict[str, float]:
        """The numbers among its widgets, and their defaults."""
        specs = (cls.REQUIRED | cls.OPTIONAL).items()
        return {name: spec[1]["default"] for name, spec in specs if isinstance(spec, tuple) and _is_number(spec[0])}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tips = texts().get(cls.__name__, {}).get("inputs", {})
        groups = {"required": cls.REQUIRED, "optional": cls.OPTIONAL}
        types: dict[str, Any] = {
            group: {name: _widget(spec, tips.get(name, {}).get("tooltip")) for name, spec in inputs.items()}
            for group, inputs in groups.items()
        }
        return types | {"hidden": dict(cls.HIDDEN)}


def display_name(cls: type[Node]) -> str:
    return texts().get(cls.__name__, {}).get("display_name", cls.__name__)


def _widget(spec: Any, tooltip: str | None) -> tuple[Any, dict[str, Any]]:
    kind, options = spec if isinstance(spec, tuple) else spec.widget()
    return kind, options | ({"tooltip": tooltip} if tooltip else {})


def _is_number(kind: Any) -> bool:
    return kind in ("INT", "FLOAT")


def _check_widget(name: str, value: Any, kind: Any, options: dict[str, Any]) -> None:
    if _is_number(kind):
        checks.number(name, value, options["min"], options["max"], whole=kind == "INT")
    elif isinstance(kind, list):
        checks.choice(name, value, tuple(kind))
    elif kind == "STRING":
        checks.text(name, value, MAX_PROMPT)


def whole(default: int, low: int, high: int, step: int = 1) -> tuple[str, dict[str, Any]]:
    return "INT", {"default": default, "min": low, "max": high, "step": step}


def number(default: float, low: float, high: float, step: float = 0.01) -> tuple[str, dict[str, Any]]:
    return "FLOAT", {"default": default, "min": low, "max": high, "step": step, "round": step}


def choice(default: str, *options: str) -> tuple[list[str], dict[str, Any]]:
    return list(options or (default,)), {"default": default}


def flag(default: bool) -> tuple[str, dict[str, Any]]:
    return "BOOLEAN", {"default": default}


def text(default: str = "", multiline: bool = False) -> tuple[str, dict[str, Any]]:
    return "STRING", {"default": default, "multiline": multiline}


def advanced(spec: tuple[Any, dict[str, Any]]) -> tuple[Any, dict[str, Any]]:
    """A widget that the page shows only when it is asked for more."""
    return spec[0], spec[1] | {"advanced": True}


def socket(kind: str, lazy: bool = False) -> tuple[str, dict[str, Any]]:
    """lazy: what is linked runs only when the node's check_lazy_status asks for it."""
    return kind, {"lazy": True} if lazy else {}


def unsupported(kind: str) -> tuple[str, dict[str, Any]]:
    """A socket of others' graphs, which is always refused: the page shows it only where it is linked."""
    return kind, {"unsupported": True}


@overload
def expect(value: Any, kind: type[Socket], what: str) -> Socket: ...
@overload
def expect(value: Any, kind: tuple[type[Socket], type[Other]], what: str) -> Socket | Other: ...
def expect(value: Any, kind: type | tuple[type, ...], what: str) -> object:
    """`value` if this pack made it. Raises: InputError for what another pack's node of the same type hands over."""
    if isinstance(value, kind):
        return value
    if value is None:
        raise InputError(f"{what} is not connected. Connect it.")
    raise InputError(
        f"{what} comes from another pack ({type(value).__module__}.{type(value).__qualname__}). "
        "Nodes of WanVideoWrapper and of this pack cannot be mixed in one graph: use this pack's node for it."
    )


def refuse(**sockets: Any) -> None:
    """Raise UnsupportedError for the first of these inputs that is connected."""
    for name, value in sockets.items():
        if value is not None:
            raise UnsupportedError(f"{name} is not supported by this pack yet. Unlink it, or use WanVideoWrapper.")


def snapped(name: str, frames: int) -> int:
    """frames as 4n + 1, as the VAE needs them; a number that has to be changed is said."""
    snap = snap_frames(frames)
    if snap != frames:
        logger.info("%s %d is not 4n + 1: %d is used.", name, frames, snap)
    return snap


def checked(check: Callable[[], object]) -> bool | str:
    """What VALIDATE_INPUTS answers: True, or what is wrong, in the page's language."""
    try:
        check()
    except TalkError as error:
        return translate(str(error), page_language())
    return True


def _choosing(function: Callable[..., Any]) -> Callable[..., Any]:
    """A node's function that takes only what its lists offer: ComfyUI checks that, scripts do not."""
    positions = tuple(signature(function).parameters)[1:]

    @wraps(function)
    def choosing(node: Node, *inputs: Any, **named: Any) -> Any:
        widgets = node.REQUIRED | node.OPTIONAL
        for name, value in (dict(zip(positions, inputs, strict=False)) | named).items():
            spec = widgets.get(name)
            if isinstance(spec, tuple) and isinstance(spec[0], list):
                _check_widget(name, value, *spec)
        return function(node, *inputs, **named)

    return choosing


def _answering(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def answering(*inputs: Any, **named: Any) -> Any:
        begin_texts()
        try:
            return function(*inputs, **named)
        except TalkError as error:
            error.args = (translate(str(error), page_language()),)
            raise

    return answering
