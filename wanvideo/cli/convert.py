"""`convert`: write a model file in another precision, one tensor after another."""

from __future__ import annotations

from ..request import CONVERSIONS
from .parser import Parser


def main(argv: list[str]) -> int:
    """Convert one file and say what came out."""
    parser = Parser("python -m wanvideo convert", description=__doc__)
    parser.add_argument("--in", dest="source", required=True, help="transformer, audio adapter or text encoder to read")
    parser.add_argument("--out", required=True, help=".safetensors file to write; it must not exist")
    parser.add_argument("--to", required=True, choices=CONVERSIONS)
    flags = parser.parse_args(argv)

    from ..checkpoints.convert import convert  # here: flags are judged before PyTorch is loaded

    result = convert(flags.source, flags.out, flags.to)
    print(
        f"{result.path}: {result.size_bytes / 1e6:.1f} MB, {result.tensors} tensors, "
        f"{result.quantized} matrices in {flags.to}."
    )
    return 0
