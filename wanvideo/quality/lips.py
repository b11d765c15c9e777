"""How far mouths are open, frame by frame.

Legend: H W rows and columns of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from .faces import FaceMesh

# Of the mesh's 468 points: the inner edges of the lips, and the outer corners of the eyes.
UPPER_LIP, LOWER_LIP = 13, 14
EYES = (33, 263)


class LipOpening(Protocol):
    """Measures mouths."""

    def __call__(self, frame: np.ndarray, /) -> Sequence[float]:
        """How far the mouth of each face in a frame [H, W, 3] uint8 is open, from left to right, in any unit that
        grows with it."""
        ...


class MeshLips:
    """The gap between the inner lips of each face, in distances between its eyes.

    Raises: UnsupportedError where mediapipe is not installed, or brings no model.
    """

    def __init__(self) -> None:
        self._mesh = FaceMesh()

    def __call__(self, frame: np.ndarray, /) -> Sequence[float]:
        openings = []
        for face in self._mesh.find(frame):
            eyes = face.distance(*EYES)
            openings.append(face.distance(UPPER_LIP, LOWER_LIP) / eyes if eyes else 0.0)
        return openings
