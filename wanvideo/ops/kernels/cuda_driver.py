"""CUDA source compiled at first use and launched through the driver, with what PyTorch's own wheels bring along.

Triton writes kernels well whose warps all do the same. One that needs more is CUDA C++ beside its Python module: NVRTC
compiles it, in half a second, and the driver launches it in PyTorch's context, on PyTorch's current stream.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
UINT8, PROMOTE_128 = 0, 2  # CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_L2_PROMOTION_L2_128B
SWIZZLES = {32: 1, 64: 2, 128: 3}  # bytes of a row -> CU_TENSOR_MAP_SWIZZLE_*


class TensorMap(ctypes.Structure):
    """A kernel's argument (CUtensorMap) from which its copy engine reads boxes of a tensor."""

    _fields_ = [("words", ctypes.c_uint64 * 16)]


@cache
def _nvrtc() -> ctypes.CDLL:
    """The compiler of PyTorch's own CUDA packages, else the system's. Raises: OSError where there is none."""
    name = f"libnvrtc.so.{torch.version.cuda.split('.')[0]}" if torch.version.cuda else "libnvrtc.so.1[23]"
    packages = Path(torch.__file__).parents[1]
    for library in sorted(packages.glob(f"nvidia/*/lib/{name}")):
        for part in library.parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(part))  # the compiler looks for it by name only
        return ctypes.CDLL(str(library))
    if not torch.version.cuda:
        raise OSError("this PyTorch is built without CUDA, and the package nvidia-cuda-nvrtc is not installed")
    return ctypes.CDLL(name)


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _check(status: int, what: str) -> None:
    if status:
        raise RuntimeError(f"{what} failed with status {status}")


def compile_source(source: str, architecture: str, constants: dict[str, int]) -> tuple[bytes, str]:
    """Machine code for an architecture (`sm_90a`), and what the compiler said of it (registers, warnings).

    constants: macros for the source. Raises: RuntimeError with the compiler's messages; OSError without a compiler.
    """
    nvrtc, program, size = _nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None), "NVRTC")
    try:
        options = [f"--gpu-architecture={architecture}", "-std=c++17", "--ptxas-options=-v"]
        options += [f"-D{name}={value}" for name, value in constants.items()]
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = nvrtc.nvrtcCompileProgram(program, len(options), array)
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        said = log.value.decode(errors="replace")
        if status:
            raise RuntimeError(f"a CUDA kernel could not be compiled: {said}")
        _check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)), "NVRTC")
        binary = ctypes.create_string_buffer(size.value)
        _check(nvrtc.nvrtcGetCUBIN(program, binary), "NVRTC")
        return binary.raw, said
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


class Kernel:
    """One function of compiled code, loaded for the current device, on which this thread has a tensor already.

    shared: bytes of dynamic shared memory that each of its blocks gets.
    """

    def __init__(self, binary: bytes, name: str, shared: int):
        self._module, self._function, self._shared = ctypes.c_void_p(), ctypes.c_void_p(), shared
        _check(_driver().cuModuleLoadData(ctypes.byref(self._module), binary), "loading a CUDA kernel")
        found = _driver().cuModuleGetFunction(ctypes.byref(self._function), self._module, name.encode())
        _check(found, f"finding the CUDA kernel {name}")
        _check(_driver().cuFuncSetAttribute(self._function, MAX_DYNAMIC_SHARED, shared), "asking for shared memory")

    def launch(self, grid: tuple[int, int, int], threads: int, arguments: Sequence) -> None:
        """arguments: tensors (their addresses), None (no address), TensorMaps and ctypes numbers, as declared."""
        addresses = (a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
        values = [ctypes.c_void_p(a) if a is None or isinstance(a, int) else a for a in addresses]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        status = _driver().cuLaunchKernel(self._function, *grid, threads, 1, 1, self._shared, stream, pointers, None)
        _check(status, "launching a CUDA kernel")


def tensor_map(x: Tensor, sizes: Sequence[int], strides: Sequence[int], box: Sequence[int]) -> TensorMap:
    """Of bytes in three dimensions, the innermost first; what a box reaches beyond the tensor reads as zeros.

    sizes, box: elements; strides: bytes, of the outer two. Rows of a box (32, 64 or 128 bytes) are swizzled.
    """
    room = (ctypes.c_uint64 * 24)()
    aligned = (ctypes.addressof(room) + 63) // 64 * 64
    status = _driver().cuTensorMapEncodeTiled(
        ctypes.c_void_p(aligned), UINT8, 3, ctypes.c_void_p(x.data_ptr()), (ctypes.c_uint64 * 3)(*sizes),
        (ctypes.c_uint64 * 2)(*strides), (ctypes.c_uint32 * 3)(*box), (ctypes.c_uint32 * 3)(1, 1, 1), 0,
        SWIZZLES[box[0]], PROMOTE_128, 0,
    )  # fmt: skip
    _check(status, "describing a tensor to the copy engine")
    result = TensorMap()
    ctypes.memmove(ctypes.addressof(result), aligned, ctypes.sizeof(result))
    return result
