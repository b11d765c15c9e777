"""How far mouths are open, frame by frame, and where their faces are.

Legend: H W rows and columns of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .faces import EYES, FaceMesh

UPPER_LIP, LOWER_LIP = 13, 14  # of the mesh's 468 points: the inner edges of the lips


@dataclass(frozen=True)
class Lips:
    """Those of one face. opening: in any unit that grows with it. box: left, top, right, bottom of the face, pixels."""

    opening: float
    box: tuple[float, float, float, float]


class LipOpening(Protocol):
    """Measures mouths."""

    def __call__(self, frame: np.ndarray, /) -> Sequence[Lips]:
        """The lips of each face in a frame [H, W, 3] uint8, from left to right."""
        ...


class MeshLips:
    """The gap between the inner lips of each face, in distances between its eyes.

    Raises: UnsupportedError where mediapipe is not installed, or brings no model.
    """

    def __init__(self) -> None:
        self._mesh = FaceMesh()

    def __call__(self, frame: np.ndarray, /) -> Sequence[Lips]:
        seen = []
        for face in self._mesh.find(frame):
            eyes = face.distance(*EYES)
            seen.append(Lips(face.distance(UPPER_LIP, LOWER_LIP) / eyes if eyes else 0.0, face.box))
        return seen
