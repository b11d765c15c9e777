"""Whether a video shows one person from its beginning to its end.

Legend: H W rows and columns of a frame.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import UnsupportedError

SAME_PERSON = 0.6  # most distance of two faces of one person, by which the recognizer was trained
PACKAGE, MODELS = "face_recognition_models", "models"
SHAPE, RECOGNIZER = "shape_predictor_5_face_landmarks.dat", "dlib_face_recognition_resnet_model_v1.dat"


class FaceVector(Protocol):
    """Recognizes faces."""

    def __call__(self, frame: np.ndarray, /) -> np.ndarray | None:
        """128 numbers of the largest face in a frame [H, W, 3] uint8, near each other for one person; None without."""
        ...


class DlibVector:
    """dlib's face recognizer, whose weights are in the package face_recognition_models.

    Raises: UnsupportedError where one of both packages is not installed.
    """

    def __init__(self) -> None:
        try:
            import dlib
        except ImportError as error:
            raise UnsupportedError(_needed(str(error))) from None
        found = importlib.util.find_spec(PACKAGE)  # importing it needs a setuptools of the past
        if found is None or not found.submodule_search_locations:
            raise UnsupportedError(_needed(f"No module named '{PACKAGE}'"))
        folder = Path(next(iter(found.submodule_search_locations)), MODELS)
        self._detect = dlib.get_frontal_face_detector()
        self._shape = dlib.shape_predictor(str(folder / SHAPE))
        self._recognizer = dlib.face_recognition_model_v1(str(folder / RECOGNIZER))

    def __call__(self, frame: np.ndarray, /) -> np.ndarray | None:
        frame = np.ascontiguousarray(frame)
        faces = self._detect(frame, 0)
        if not faces:
            return None
        largest = max(faces, key=lambda face: face.area())
        return np.array(self._recognizer.compute_face_descriptor(frame, self._shape(frame, largest)))


def _needed(reason: str) -> str:
    return f"it needs a face recognizer ({reason}). Run pip install dlib-bin face_recognition_models."


@dataclass(frozen=True)
class Identity:
    """How much a face resembles the first one, or the reference picture's, second by second.

    Args:
        cosines: of each second, None without a face. distances: the same by dlib's own measure.
        is_against_reference: which of both.
    """

    cosines: tuple[float | None, ...]
    distances: tuple[float | None, ...]
    is_against_reference: bool

    @property
    def most(self) -> float:
        """Distance of the second that resembles it least."""
        return max(distance for distance in self.distances if distance is not None)

    @property
    def is_one_person(self) -> bool:
        return self.most <= SAME_PERSON


def compare(vectors: Sequence[np.ndarray | None], reference: np.ndarray | None) -> Identity | None:
    """Hold faces of a video against the reference's, or where that is None the first one; None without any face."""
    first = next((vector for vector in vectors if vector is not None), None)
    if first is None:
        return None
    target = first if reference is None else reference
    cosines = (None if v is None else float(v @ target / np.linalg.norm(v) / np.linalg.norm(target)) for v in vectors)
    distances = (None if v is None else float(np.linalg.norm(v - target)) for v in vectors)
    return Identity(tuple(cosines), tuple(distances), reference is not None)
