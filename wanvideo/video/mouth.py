"""The mouths and chins of all faces of a source video, found frame by frame.

Legend: F frames of the result, H W its rows and columns.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from ..errors import UnsupportedError
from ..request import MAX_SPEAKERS
from .feather import feathered
from .source import SourceVideo

# Of the mesh's 468 points: the jaw from one ear to the other, and the base of the nose, which close a polygon.
JAW = (361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136, 172, 58, 132)
NOSE = 2
LARGER = 1.15  # than the polygon, for a chin that moves further than the source's does
STEADY = 2  # frames before and after whose mouths a region holds as well

logger = logging.getLogger("wanvideo")


class MouthRegion:
    """Around the mouths and chins of all faces; a frame without a face has that of its neighbors, or none.

    Each frame is looked at by itself, so a region follows from its window alone.
    Raises: UnsupportedError where mediapipe is not installed, or brings no model.
    """

    def __init__(self, video: SourceVideo, feather: int) -> None:
        self._video, self._feather, self._is_told = video, feather, False
        self._mesh = open_mesh("mouth auto", ", or paint a mask")

    def weights(self, start: int, stop: int) -> Tensor:
        masks = torch.stack([self._mask(index) for index in range(start, stop)])
        if not masks.any() and not self._is_told:
            self._is_told = True
            logger.warning("No face is found in frames %d to %d of the source: they stay as they are.", start, stop)
        across = masks.float().flatten(1).T[:, None]  # steady in time: the most of frames around
        steady = functional.max_pool1d(across, 2 * STEADY + 1, 1, STEADY)[:, 0].T.view(masks.shape) > 0
        return torch.stack([feathered(mask, self._feather) for mask in steady])

    def _mask(self, index: int) -> Tensor:
        frame = self._video.frame(index).numpy()
        height, width = frame.shape[:2]
        picture = Image.new("1", (width, height))
        for face in self._mesh.process(frame).multi_face_landmarks or ():
            points = np.array([(face.landmark[i].x * width, face.landmark[i].y * height) for i in (*JAW, NOSE)])
            center = points.mean(0)
            outline = [tuple(point) for point in (points - center) * LARGER + center]
            ImageDraw.Draw(picture).polygon(outline, fill=1)
        return torch.from_numpy(np.array(picture))


def open_mesh(what: str, instead: str = "") -> Any:
    """The face mesh of mediapipe: its `process` takes [H, W, 3] uint8.

    Args: what: needs it. instead: what else a user can do, after a comma.
    Raises: UnsupportedError where there is none.
    """
    try:
        from mediapipe.python.solutions.face_mesh import FaceMesh
    except ImportError as error:
        raise UnsupportedError(
            f"{what} needs a mediapipe that brings its face model, which cannot be used here ({error}). "
            f'Install one (pip install "mediapipe<0.10.22"){instead}.'
        ) from None
    return FaceMesh(static_image_mode=True, max_num_faces=MAX_SPEAKERS)
