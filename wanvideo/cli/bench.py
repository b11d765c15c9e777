"""`bench`: measure a first and a later window on this machine, with random weights made on the device."""

from __future__ import annotations

import torch

from .. import checks
from ..engine.host import ProcessHost
from ..errors import InputError
from ..geometry import VideoGeometry, parse_size
from ..memory.budget import GIB
from ..ops.attention.names import known
from ..ops.precision import DTYPES
from ..request import QUANTIZERS, EngineOptions, LoopSettings
from .bench_table import print_tables
from .costs import HIGHEST_PRICE, minute_of_video
from .flags import FLAGS
from .measure import measure, sizes
from .parser import Parser, named, real, whole


def build_parser() -> Parser:
    parser = Parser("python -m wanvideo bench", description=__doc__)
    parser.add_argument("--size", choices=("full", "small", "tiny"), default="full", help="of the models")
    parser.add_argument("--video", help="WIDTHxHEIGHT; 832x480 if not given")
    parser.add_argument("--frames", type=whole, help="of a window, 4n + 1; 81 if not given")
    parser.add_argument("--steps", type=whole, default=4)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--quant", choices=QUANTIZERS, help="format of the blocks' matrices")
    parser.add_argument("--attention", default="auto", help="backend of self-attention")
    parser.add_argument("--blocks_to_swap", type=whole, default=0, help="blocks that stream")
    parser.add_argument("--tiled_vae", action="store_true")
    parser.add_argument("--table", action="store_true", help="every preset for 30 s of video, and every format instead")
    parser.add_argument("--price", type=real, help="of a GPU for an hour: says what video costs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def _pixels(text: str) -> tuple[int, int]:
    size = parse_size(text)
    if isinstance(size, str):
        raise InputError(f"--video {text!r} is a table of sizes. Give one of them, WIDTHxHEIGHT.")
    return size


def main(argv: list[str]) -> int:
    """Print seconds of steps, encode, decode and windows, peak memory, and whether every frame is finite."""
    flags = build_parser().parse_args(argv)
    with named({**FLAGS, "blocks_to_stream": "--blocks_to_swap"}):
        options = EngineOptions(
            flags.device, flags.dtype, quantize=flags.quant, attention=flags.attention,
            blocks_to_stream=flags.blocks_to_swap,
        )  # fmt: skip
        known(options.attention)
        size, device = sizes()[flags.size], ProcessHost(options.device).device
    if flags.price is not None:
        checks.number("--price", flags.price, 0, HIGHEST_PRICE)
    if flags.table:
        return print_tables(size, device, flags.price)
    frames = size.frames if flags.frames is None else flags.frames
    with named({**FLAGS, "num_frames": "--frames", "window": "--frames", "steps": "--steps", "size": "--video"}):
        geometry = VideoGeometry(*(size.video if flags.video is None else _pixels(flags.video)), frames)
        settings = LoopSettings(
            window_frames=frames, motion_frames=size.motion, scheduler="multitalk", steps=flags.steps, shift=11.0,
            guidance_scale=1.0, audio_guidance_scale=1.0, tiled_vae=flags.tiled_vae,
        )  # fmt: skip
    found = measure(size, geometry, settings, options)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {flags.size} models, {flags.quant or flags.dtype}, {found.attention}")
    print(f"{geometry.width}x{geometry.height}, {frames} frames, {flags.steps} steps, streaming {flags.blocks_to_swap}")
    for index, seconds in enumerate(found.windows):
        parts = f"encode {found.encodes[index]:.2f} s, decode {found.decodes[index]:.2f} s"
        print(f"{'later' if index else 'first'} window  {seconds:8.2f} s  ({parts})")
    if found.num_steps:
        print(f"a step        {found.step:8.2f} s  (median of {found.num_steps})")
    if flags.price is not None:
        new_frames = frames - size.motion
        cost = minute_of_video(found.windows[-1], new_frames, flags.price)
        print(f"a minute      {cost:8.2f}    (of video, at {flags.price:g} an hour)")
    if found.peak_bytes:
        print(f"peak memory   {found.peak_bytes / GIB:8.2f} GiB")
    print("every frame is finite" if found.is_finite else "some frames are not finite")
    return 0 if found.is_finite else 1
