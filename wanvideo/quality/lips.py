"""How far a mouth is open, frame by frame.

Legend: H W rows and columns of a frame.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from ..video.mouth import open_mesh

# Of the mesh's 468 points: the inner edges of the lips, and the outer corners of the eyes.
UPPER_LIP, LOWER_LIP = 13, 14
EYES = (33, 263)


class LipOpening(Protocol):
    """Measures mouths."""

    def __call__(self, frame: np.ndarray, /) -> float | None:
        """How far the mouth in a frame [H, W, 3] uint8 is open, in any unit that grows with it; None without a face."""
        ...


class MeshLips:
    """The gap between the inner lips of the first face, in distances between its eyes.

    Raises: UnsupportedError where mediapipe is not installed, or brings no model.
    """

    def __init__(self) -> None:
        self._mesh = open_mesh()

    def __call__(self, frame: np.ndarray, /) -> float | None:
        height, width = frame.shape[:2]
        faces = self._mesh.process(np.ascontiguousarray(frame)).multi_face_landmarks
        if not faces:
            return None
        points = faces[0].landmark

        def distance(one: int, other: int) -> float:
            a, b = points[one], points[other]
            return math.hypot((a.x - b.x) * width, (a.y - b.y) * height)

        eyes = distance(*EYES)
        return distance(UPPER_LIP, LOWER_LIP) / eyes if eyes else None
