"""Scenes of one video: each begins a chain of windows of its own, with its own reference and colors.

Legend: H W pixel rows and columns, m frames that two windows share.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..geometry import WindowPlan
from ..protocols import KeptFrames, MotionLatents, References, WindowCondition
from .cached import Cached

MakeCondition = Callable[[References], WindowCondition]


class Scenes:
    """The condition of a mode, made anew for every scene as if the video began there.

    Args: make: a mode's condition from its references. references: of all windows. plan: with the cuts.
    """

    def __init__(self, make: MakeCondition, references: References, plan: WindowPlan) -> None:
        self._make, self._references, self._plan = make, references, plan
        self._scene: Cached[int, WindowCondition] = Cached()

    def reference_index(self, window_index: int) -> int:
        first = self._plan.scene_first(window_index)
        return self._reference(first) + self._condition(first).reference_index(window_index - first)

    def known(self, window_index: int, last_frames: Tensor | None) -> tuple[Tensor | None, MotionLatents | None]:
        first = self._plan.scene_first(window_index)
        return self._condition(first).known(window_index - first, last_frames)

    def color_reference(self, window_index: int) -> Tensor | None:
        first = self._plan.scene_first(window_index)
        return self._condition(first).color_reference(window_index - first)

    def kept(self, window_index: int) -> KeptFrames | None:
        first = self._plan.scene_first(window_index)
        return self._condition(first).kept(window_index - first)

    def _condition(self, first: int) -> WindowCondition:
        return self._scene.get(first, lambda: self._make(_From(self._references, self._reference(first))))

    def _reference(self, window_index: int) -> int:
        return min(window_index, len(self._references) - 1)


class _From:
    """References from the first one of a scene on."""

    def __init__(self, references: References, first: int) -> None:
        self._references, self._first = references, first

    def __len__(self) -> int:
        return len(self._references) - self._first

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(f"reference {index} of {len(self)}")
        return self._references[self._first + index]
