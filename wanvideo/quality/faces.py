"""The faces of a picture, and whether they will speak well.

Legend: H W rows and columns of a picture, S speakers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..geometry import SIZE_MULTIPLE
from ..video.mouth import open_mesh

# Of the mesh's 468 points: the edges of a face beside its ears, and the outer corners of its eyes, from left to right.
CHEEKS, EYES = (234, 454), (33, 263)
LEAST_WIDTH = 4 * SIZE_MULTIPLE  # pixels of a face: its mouth then is one or two of the model's tokens wide
# Degrees; beyond, one half of the mouth is hidden. The mesh sees a photographed profile at 41 to 54, and 98 faces of
# press photographs (scikit-image's of LFW) at 28 at most.
MOST_YAW = 35.0
MOST_ROLL = 40.0  # degrees; hardly anybody who talks leans further
MOST_CUT = 0.05  # of a face's height or width; points of a whole face are found a little beyond an edge that is near
TILES = (2, 3)  # small faces are looked for in parts of a picture, a half and a third of its size
SAME_FACE = 0.5  # of a face's width: how near another one's middle is
READ_AT = 256  # pixels of a part's shorter side, at least


@dataclass(frozen=True)
class Face:
    """One face. points: [468, 3] columns, rows and depths in pixels of the picture."""

    points: np.ndarray

    @property
    def middle(self) -> tuple[float, float]:
        """Row and column."""
        return float(self.points[:, 1].mean()), float(self.points[:, 0].mean())

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of all points: from the forehead to the chin."""
        (left, top), (right, bottom) = self.points[:, :2].min(0).tolist(), self.points[:, :2].max(0).tolist()
        return left, top, right, bottom

    @property
    def width(self) -> float:
        """Pixels from ear to ear, also where it is turned."""
        return float(math.dist(*(self.points[index] for index in CHEEKS)))

    @property
    def yaw(self) -> float:
        """Degrees that it is turned to a side; 0 looks at the camera, and a profile is some 50 to the mesh."""
        column, row, depth = self._across(CHEEKS)
        return math.degrees(math.atan2(abs(depth), math.hypot(column, row)))

    @property
    def roll(self) -> float:
        """Degrees, -180 to 180, by which the line of its eyes leans to the right.

        The mesh follows a photograph that is turned to about 90; in one that is upside down it sees an upright face, or
        none.
        """
        column, row, _ = self._across(EYES)
        return math.degrees(math.atan2(row, column))

    def cut(self, height: int, width: int) -> float:
        """The part of its height or width, whichever is more, that lies beyond the edges of a picture of this size."""
        left, top, right, bottom = self.box
        across = max(-left, right - width) / max(right - left, 1)
        down = max(-top, bottom - height) / max(bottom - top, 1)
        return max(across, down, 0.0)

    def distance(self, one: int, other: int) -> float:
        """Pixels between two points of the mesh, as they are seen."""
        return float(math.dist(self.points[one, :2], self.points[other, :2]))

    def _across(self, ends: tuple[int, int]) -> tuple[float, float, float]:
        """Columns, rows and depth from one point to another."""
        column, row, depth = (self.points[ends[1]] - self.points[ends[0]]).tolist()
        return column, row, depth


class FaceMesh:
    """Finds faces with mediapipe. Raises: UnsupportedError where it is not installed, or brings no model."""

    def __init__(self, what: str = "it") -> None:
        self._mesh = open_mesh(what)

    def find(self, picture: np.ndarray) -> list[Face]:
        """The faces of a picture [H, W, 3] uint8 from left to right; small ones may be missed."""
        height, width = picture.shape[:2]
        found = self._mesh.process(np.ascontiguousarray(picture)).multi_face_landmarks or ()
        scale = (width, height, width)
        faces = [Face(np.array([(p.x, p.y, p.z) for p in face.landmark]) * scale) for face in found]
        return sorted(faces, key=lambda face: face.middle[1])

    def search(self, picture: np.ndarray) -> list[Face]:
        """The same, small ones too, which takes longer."""
        faces = self.find(picture)
        for top, left, part, scale in _parts(picture):
            for face in self.find(part):
                moved = Face(face.points / scale + (left, top, 0))
                if all(math.dist(moved.middle, known.middle) > SAME_FACE * known.width for known in faces):
                    faces.append(moved)
        return sorted(faces, key=lambda face: face.middle[1])


def _parts(picture: np.ndarray) -> Iterator[tuple[int, int, np.ndarray, float]]:
    """(row, column, part, how much larger it is than in the picture) of overlapping parts."""
    height, width = picture.shape[:2]
    for share in TILES:
        rows, columns = height // share, width // share
        scale = max(1.0, READ_AT / max(min(rows, columns), 1))
        for i in range(2 * share - 1):
            for k in range(2 * share - 1):
                top, left = i * rows // 2, k * columns // 2
                part = Image.fromarray(picture[top : top + rows, left : left + columns])
                size = (round(part.width * scale), round(part.height * scale))
                yield top, left, np.asarray(part.resize(size, Image.Resampling.BICUBIC)), scale


def doubts(faces: list[Face], size: tuple[int, int], masks: np.ndarray | None, num_speakers: int) -> list[str]:
    """Why a picture may not speak well, a sentence each; none where nothing speaks against it.

    Args: faces: of the picture, fitted to the video. size: its rows and columns. masks: [S, H, W] bool of each
        speaker, None for one or none.
    """
    if not num_speakers:
        return []
    if not faces:
        return ["No face is found: whoever speaks may not move. Take a picture that shows the face from the front."]
    if masks is None:
        said = [] if len(faces) == 1 else [
            f"{len(faces)} faces and one speaker: all of them may speak. Add a silent speaker with a region for each "
            "other face, or crop the picture."
        ]  # fmt: skip
        return [*said, *_doubts_of(max(faces, key=lambda face: face.width), size, "The face")]
    said = []
    for number, mask in enumerate(masks, 1):
        inside = [face for face in faces if _is_in(face, mask)]
        if not inside:
            said.append(f"No face is found in the region of speaker {number}. Move the region over the face.")
        elif len(inside) > 1:
            said.append(f"{len(inside)} faces are in the region of speaker {number}: all of them may speak. Make the "
                        "region smaller.")  # fmt: skip
        for face in inside[:1]:
            said += _doubts_of(face, size, f"The face of speaker {number}")
    return said


def _doubts_of(face: Face, size: tuple[int, int], name: str) -> Iterator[str]:
    if face.width < LEAST_WIDTH:
        yield (
            f"{name} is {face.width:.0f} pixels wide in the video, too small for a mouth that is seen to move; "
            f"{LEAST_WIDTH} are enough. Crop the picture closer, or make the video larger."
        )
    if face.yaw > MOST_YAW:
        yield (
            f"{name} is turned by {face.yaw:.0f} degrees, half of its mouth is hidden. Take a picture in which "
            f"it is turned by less than {MOST_YAW:.0f}."
        )
    if (roll := abs(face.roll)) > MOST_ROLL:
        yield (
            f"{name} leans by {roll:.0f} degrees: its mouth may not move well. Turn the picture so that its eyes "
            "are level."
        )
    if face.cut(*size) > MOST_CUT:
        yield (
            f"{name} is cut off by the edge of the video. Take a picture that shows it from the forehead to the chin, "
            "or a size of the picture's shape."
        )


def _is_in(face: Face, mask: np.ndarray) -> bool:
    row, column = (round(place) for place in face.middle)
    return 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1] and bool(mask[row, column])
