"""Lets the published torchvision and torchaudio be imported beside a CPU build of torch.

Both are built against CUDA and stop at import when torch is not: torchvision asks for operators that its native library
would have declared, torchaudio opens a native library that needs CUDA's. Here the operators are declared without an
implementation and torchaudio is told that it ships no library. Beside a CUDA or ROCm torch nothing is changed.
"""

import sys
from importlib.machinery import PathFinder

UNDECLARED = ("nms", "qnms")


def torch_has_no_gpu() -> bool:
    import torch

    return not torch.version.cuda and not torch.version.hip


class NativeLibrariesAreOptional:
    def __init__(self) -> None:
        self.declared = None

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision" and self.declared is None and torch_has_no_gpu():
            self.declare_operators()
        if name == "torchaudio._extension.utils" and torch_has_no_gpu():
            return self.without_library(PathFinder.find_spec(name, path, target))
        return None

    def declare_operators(self) -> None:
        import torch

        # Kept alive: a torch Library withdraws its operators when it is collected.
        self.declared = torch.library.Library("torchvision", "DEF")
        for operator in UNDECLARED:
            self.declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

    @staticmethod
    def without_library(spec):
        if spec is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module) -> None:
            run(module)
            module._load_lib = lambda name: False

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, NativeLibrariesAreOptional())
