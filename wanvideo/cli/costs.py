"""What video costs on rented GPUs, from how long a window takes."""

from __future__ import annotations

from ..geometry import FPS

HOUR_S, MINUTE_S = 3600.0, 60.0
HIGHEST_PRICE = 1e6  # of a GPU for an hour, in any currency


def cost(seconds: float, price: float, num_gpus: int = 1) -> float:
    """Of so many GPUs for so long. Args: price: of one of them for an hour."""
    return seconds / HOUR_S * price * num_gpus


def minute_of_video(window_s: float, new_frames: int, price: float, num_gpus: int = 1, fps: float = FPS) -> float:
    """Cost of a minute of a long video whose windows follow each other.

    Args: window_s: seconds of a later window, made by `num_gpus` together. new_frames: that it adds.
    """
    return cost(window_s * MINUTE_S * fps / new_frames, price, num_gpus)
