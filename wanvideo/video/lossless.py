"""Pictures that are only in memory, as a file from which they are read frame by frame, level for level.

Legend: H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..errors import OutputError

SUFFIX = ".avi"  # takes FFV1 and RGB, and has the same bytes each time, by which a run is found again
CODEC, FORMAT = "ffv1", "bgr0"


def write_lossless(path: Path, pictures: Iterable[np.ndarray], rate: Fraction) -> None:
    """Write pictures, uint8 [H, W, 3] of one size, at `rate` frames a second; one is held at a time.

    Raises: OutputError when the disk is full or the file cannot be made.
    """
    try:
        with av.open(str(path), "w") as container:
            stream = None
            for number, picture in enumerate(pictures):
                if stream is None:
                    stream = container.add_stream(CODEC, rate=rate)
                    stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], FORMAT
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24").reformat(format=FORMAT)
                frame.pts, frame.time_base = number, 1 / rate
                container.mux(stream.encode(frame))
            if stream is not None:
                container.mux(stream.encode(None))
    except (av.FFmpegError, OSError) as error:
        path.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written ({error.strerror}). Make room on its disk.") from None
    except BaseException:
        path.unlink(missing_ok=True)
        raise
