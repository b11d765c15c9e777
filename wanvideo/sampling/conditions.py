"""What each mode knows of a window before it is sampled: one class a mode, each a `WindowCondition`.

Legend: R reference pictures, F pixel frames of a window, m of them repeat the previous one, T latent frames, n of them
motion latents, H W pixel rows and columns, h w latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import VideoGeometry, WindowPlan, latent_frames
from ..keep import check_reanchor
from ..protocols import NoiseFn, References, WindowCondition
from ..request import LoopSettings
from .anchor import Anchor
from .cached import Cached
from .codec import VideoCodec
from .conditioning import Conditioning
from .dub import Dub
from .scenes import Scenes
from .window import blend_noise


@dataclass(frozen=True)
class Motion:
    """Motion latents [16, n, h, w] at the front of a window.

    clean: they stay as they are in every step; otherwise they are noised to the step's level.
    """

    latents: Tensor
    clean: bool

    def hold(self, latents: Tensor, timestep: float, noise: NoiseFn) -> Tensor:
        """`latents` [16, T, h, w] with its first frames replaced by the known ones, as they are at `timestep`."""
        known = self.latents
        if not self.clean:
            known = blend_noise(known, noise(tuple(known.shape)).to(known), timestep)
        latents[:, : known.shape[1]] = known
        return latents


class InfiniteTalk:
    """Every window's condition is its reference picture alone; its motion latents are clean in every step.

    They are the last frames of the previous window, encoded by themselves; in the first window, the picture.
    """

    def __init__(self, references: References, codec: VideoCodec, geometry: VideoGeometry, overlap: int) -> None:
        self._references, self._codec, self._geometry = references, codec, geometry
        self._latents: Cached[int, Tensor] = Cached()

    def reference_index(self, window_index: int) -> int:
        return min(window_index, len(self._references) - 1)

    def known(self, window_index: int, last_frames: Tensor | None) -> tuple[Tensor, Motion]:
        number, picture = self._picture(window_index)
        latents = self._latents.get(number, lambda: self._encode(picture))
        if last_frames is not None:
            return _first_frame_known(latents), Motion(self._codec.encode(last_frames), clean=True)
        # The VAE is causal: the picture alone has the same latent as the picture followed by anything.
        return _first_frame_known(latents), Motion(latents[:, :1], clean=True)

    def color_reference(self, window_index: int) -> Tensor:
        return self._references[self.reference_index(window_index)]

    def kept(self, window_index: int) -> None:
        return None

    def _picture(self, window_index: int) -> tuple[int, Tensor]:
        """The picture [3, H, W] that a window is conditioned on, and a number that no other one has."""
        index = self.reference_index(window_index)
        return index, self._references[index]

    def _encode(self, picture: Tensor) -> Tensor:
        return self._codec.encode_start(picture[:, None], self._geometry.num_frames)


class Reanchored(InfiniteTalk):
    """A window's condition is the anchor, where a window before it gave one (see `anchor.Anchor`).

    Image embeddings and colors stay those of the reference picture.
    Args: anchor: the run's, after the window before; the object itself keeps none.
    """

    def __init__(
        self, reference: Tensor, codec: VideoCodec, geometry: VideoGeometry, overlap: int,
        anchor: Callable[[], Anchor | None],
    ) -> None:  # fmt: skip
        super().__init__([reference], codec, geometry, overlap)
        self._anchor = anchor

    def _picture(self, window_index: int) -> tuple[int, Tensor]:
        anchor = self._anchor()
        if anchor is None or anchor.picture is None:
            return super()._picture(window_index)
        return len(self._references) + anchor.window, anchor.picture


class MultiTalk:
    """A window's condition are the frames it begins with: the reference picture, later the end of the previous window.

    The motion latents are the front of the same latents, noised to the level of each step; the first window has none.
    Source: the loop of WanVideoWrapper. Unlike here, MultiTalk's own marks all of these frames as known and not only
    the first latent frame, and gives CLIP the last of them instead of the reference picture.
    """

    def __init__(self, references: References, codec: VideoCodec, geometry: VideoGeometry, overlap: int) -> None:
        self._references, self._codec, self._geometry = references, codec, geometry
        self._num_motion = latent_frames(overlap)

    def reference_index(self, window_index: int) -> int:
        return min(window_index, len(self._references) - 1)

    def known(self, window_index: int, last_frames: Tensor | None) -> tuple[Tensor, Motion | None]:
        if last_frames is None:
            picture = self._references[self.reference_index(window_index)][:, None]
            return _first_frame_known(self._codec.encode_start(picture, self._geometry.num_frames)), None
        latents = self._codec.encode_start(last_frames, self._geometry.num_frames)
        return _first_frame_known(latents), Motion(latents[:, : self._num_motion], clean=False)

    def color_reference(self, window_index: int) -> Tensor:
        return self._references[0]

    def kept(self, window_index: int) -> None:
        return None


@dataclass(frozen=True)
class Plain:
    """One clip by itself. channels: [20, T, h, w], made before (`clip.picture_condition`); None: nothing is known."""

    channels: Tensor | None

    def reference_index(self, window_index: int) -> int:
        return 0

    def known(self, window_index: int, last_frames: Tensor | None) -> tuple[Tensor | None, None]:
        return self.channels, None

    def color_reference(self, window_index: int) -> None:
        return None

    def kept(self, window_index: int) -> None:
        return None


ConditionClass = Callable[[References, VideoCodec, VideoGeometry, int], WindowCondition]
CONDITIONS: dict[str, ConditionClass] = {"infinitetalk": InfiniteTalk, "multitalk": MultiTalk}
"""The class of each mode; called with (references, codec, geometry of a window, overlap in pixel frames)."""


def make_condition(
    settings: LoopSettings, conditioning: Conditioning, codec: VideoCodec, geometry: VideoGeometry, plan: WindowPlan,
    anchor: Callable[[], Anchor | None],
) -> WindowCondition:  # fmt: skip
    """The condition of a mode's windows: anew for every scene, and where there is a source video, as a dub of it.

    Args: anchor: the run's, for settings that re-anchor.
    Raises: InputError for settings that re-anchor what is not made from one picture.
    """
    references = conditioning.references
    if settings.reanchor:
        changing = {"several reference pictures": len(references) > 1, "keep": conditioning.source is not None}
        check_reanchor(settings.reanchor, changing | {"scene_seg": bool(plan.cuts)})
        return Reanchored(references[0], codec, geometry, plan.overlap, anchor)

    def of(references: References) -> WindowCondition:
        return CONDITIONS[settings.mode](references, codec, geometry, plan.overlap)

    condition = Scenes(of, references, plan) if plan.cuts else of(references)
    return condition if conditioning.source is None else Dub(condition, conditioning.source, codec, plan)


def _first_frame_known(latents: Tensor) -> Tensor:
    """Latents [16, T, h, w] behind the mask that says that only the first frame is known: [20, T, h, w]."""
    mask = latents.new_zeros(4, *latents.shape[1:])
    mask[:, 0] = 1
    return torch.cat((mask, latents))


def mode_of_adapter(file_name: str) -> str:
    """The mode that an adapter was trained for. All have the same tensors, so that only the file's name tells."""
    name = file_name.lower()
    return "multitalk" if "multitalk" in name and "infini" not in name else "infinitetalk"
