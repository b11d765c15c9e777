"""torch.compile of single blocks, and what it must leave alone."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable, Iterable
from typing import TypeVar, cast

import torch
from torch import nn

from ..errors import InputError, UnsupportedError
from ..request import COMPILE_MODES

AnyFunction = Callable[..., object]
Function = TypeVar("Function", bound=AnyFunction)
CompileBackend = str | AnyFunction
_EXCLUDED: list[tuple[AnyFunction, AnyFunction]] = []  # functions, and what is called in their place
_DISABLED: dict[AnyFunction, AnyFunction] = {}  # filled when something is compiled: importing that takes a second
# CUDA graphs record addresses, and those of streamed weights change; these are the same without them.
WITHOUT_GRAPHS = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}
logger = logging.getLogger("wanvideo")


def compile_disabled(function: Function) -> Function:
    """A function that compiled code calls as it is: a fused kernel, or what sizes of prompts and sounds decide on."""

    @functools.wraps(function)
    def call(*args: object) -> object:
        return _DISABLED.get(function, function)(*args)

    _EXCLUDED.append((function, call))
    return cast(Function, call)


def compile_modules(modules: Iterable[nn.Module], mode: str, backend: CompileBackend = "inductor") -> None:
    """Compile the forward of each module, all of which share one compiled code where they are alike.

    Args:
        mode: of request.COMPILE_MODES; those with CUDA graphs are used without them, said in the log.
        backend: of torch.compile, where cudagraphs stands for inductor.
    Raises: InputError for an unknown mode, UnsupportedError where nothing can be compiled.
    """
    if mode not in COMPILE_MODES:
        raise InputError(f"compile {mode!r} is not known. Use one of {', '.join(COMPILE_MODES)}, or None.")
    if backend == "cudagraphs":
        logger.info("Compiling: the backend 'cudagraphs' cannot follow streamed weights; 'inductor' is used.")
        backend = "inductor"
    if backend == "inductor":
        if torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
            raise UnsupportedError("torch.compile needs the package triton, which is not installed. Leave it out.")
        if mode in WITHOUT_GRAPHS:
            logger.info("Compiling: %r is used without CUDA graphs, as %r.", mode, WITHOUT_GRAPHS[mode])
            mode = WITHOUT_GRAPHS[mode]
    _leave_excluded_alone()
    compiled: dict[type, AnyFunction] = {}
    for module in modules:
        kind = type(module)
        if kind not in compiled:
            compiled[kind] = torch.compile(kind.forward, backend=backend, mode=mode if backend == "inductor" else None)
        module.forward = functools.partial(compiled[kind], module)


def _leave_excluded_alone() -> None:
    from torch._dynamo.decorators import skip

    for function, call in _EXCLUDED:
        if function not in _DISABLED:
            _DISABLED[function] = torch.compiler.disable(function)
            skip(call)


def release_modules(modules: Iterable[nn.Module]) -> None:
    """Run them as they are written again."""
    for module in modules:
        vars(module).pop("forward", None)
