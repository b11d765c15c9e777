"""JPEG as ComfyUI has it: since 0.30 its LoadImage decodes with FFmpeg, whose colors differ from Pillow's at edges."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

MAX_BYTES = 2**28  # of a file that is held in memory
ALIGNMENT = 64  # pixels up to which FFmpeg rounds a side before it compares with its limit, at most
FORMATS = ("yuvj420p", "yuvj422p", "yuvj444p")  # what ComfyUI brings to 8 bit RGB; of others it makes fractions


def decode_jpeg(path: Path, width: int, height: int) -> np.ndarray | None:
    """The pixels [H, W, 3] uint8 of a JPEG in color, not turned, to the bit as LoadImage of ComfyUI 0.30 gives them.

    A codec alone decodes the bytes: no demuxer opens a file of another name.

    Args: path: a regular file. width, height: that its header states.
    Returns: None for what FFmpeg cannot decode, or decodes to anything else than 8 bit color of that size.
    """
    if path.stat().st_size > MAX_BYTES:
        return None
    codec = av.CodecContext.create("mjpeg", "r")
    codec.options = {"max_pixels": str((width + ALIGNMENT) * (height + ALIGNMENT))}
    codec.thread_count = 1
    try:
        frames = codec.decode(av.Packet(path.read_bytes()))
        frames += codec.decode(None) if not frames else []
    except av.FFmpegError:
        return None
    if not frames or frames[0].format.name not in FORMATS or (frames[0].width, frames[0].height) != (width, height):
        return None
    return frames[0].to_ndarray(format="rgb24")
