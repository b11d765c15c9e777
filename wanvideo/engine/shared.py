"""What one rank has encoded, on all ranks: small tensors at once, sound and pictures when they are asked for.

Legend: R reference pictures, S speakers, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar, cast

from torch import Tensor

from ..parallel.team import PeerStopped, Team
from ..protocols import AudioSource, References, SourceFrames
from ..sampling.conditioning import Conditioning
from ..sampling.state import WindowState

Shared = TypeVar("Shared")


def share_made(team: Team, make: Callable[[], Shared] | None) -> Shared:
    """What the first rank makes, on all of them. Args: make: None on the others.

    Raises: what `make` raises, on the first rank; PeerStopped on the others.
    """
    made: tuple[Shared | None, str] | None = None
    error = None
    if make is not None:
        try:
            made = make(), ""
        except BaseException as caught:  # noqa: BLE001 - whatever it is, the others must not wait
            error, made = caught, (None, f"{type(caught).__name__}: {caught}")
    value, problem = team.share(made)
    if error is not None:
        raise error
    if problem:
        raise PeerStopped(f"Rank 0 ended the job: {problem}")
    return cast(Shared, value)


class SharedAudio:
    """The first rank's `AudioSource`; all ranks ask for the same frames in the same order."""

    def __init__(self, team: Team, own: AudioSource | None) -> None:
        self._team, self._own = team, own
        traits = None if own is None else (own.num_speakers, own.silence, own.num_frames)
        self.num_speakers, self.silence, self._num_frames = team.share(traits)

    @property
    def num_frames(self) -> int | None:
        return self._num_frames

    def features(self, start: int, stop: int) -> Tensor:
        own = self._own
        make = None if own is None else lambda: (own.features(start, stop).clone(), own.num_frames)
        entries, self._num_frames = share_made(self._team, make)
        return entries


class SharedPictures:
    """The first rank's pictures [R, 3, H, W], or their embeddings; all ranks ask for the same in the same order."""

    def __init__(self, team: Team, own: References | None) -> None:
        self._team, self._own = team, own
        self._count: int = team.share(None if own is None else len(own))
        self._last: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self._count:
            raise IndexError(f"reference {index} of {self._count}")
        if self._last is None or self._last[0] != index:
            own = self._own
            self._last = index, share_made(self._team, None if own is None else lambda: own[index].clone())
        return self._last[1]


class SharedSource:
    """The first rank's `SourceFrames`; all ranks ask for the same frames in the same order."""

    def __init__(self, team: Team, own: SourceFrames | None) -> None:
        self._team, self._own = team, own

    def frames(self, start: int, stop: int) -> Tensor:
        own = self._own
        return share_made(self._team, None if own is None else lambda: own.frames(start, stop).clone())

    def region(self, start: int, stop: int) -> Tensor:
        own = self._own
        return share_made(self._team, None if own is None else lambda: own.region(start, stop).clone())


@dataclass(frozen=True)
class Beginning:
    """What a video is rendered from: its conditioning, the seed, and the state after the windows that are there."""

    conditioning: Conditioning
    seed: int
    state: WindowState | None = None


@dataclass(frozen=True)
class _Sent:
    """What goes to the other ranks at once: a beginning without sound, pictures, many embeddings and source, if there
    is one."""

    beginning: Beginning | None
    has_audio: bool = False
    has_source: bool = False
    has_many_embeds: bool = False


def share_beginning(team: Team | None, begin: Callable[[], Beginning | None]) -> Beginning | None:
    """What `begin` makes on the first rank, on all of them; None where there is nothing to do.

    Raises: what `begin` raises, on the first rank; PeerStopped on the others.
    """
    if team is None:
        return begin()
    own: Beginning | None = None

    def make() -> _Sent:
        nonlocal own
        own = begin()
        if own is None:
            return _Sent(None)
        conditioning = own.conditioning
        has_many = conditioning.num_many_embeds > 0
        embeds = None if has_many else conditioning.image_embeds
        light = replace(conditioning, references=(), audio=None, source=None, image_embeds=embeds)
        return _Sent(
            replace(own, conditioning=light), conditioning.audio_source is not None, conditioning.source is not None,
            has_many,
        )  # fmt: skip

    sent = share_made(team, make if team.index == 0 else None)
    if sent.beginning is None:
        return None
    references = SharedPictures(team, None if own is None else own.conditioning.references)
    audio_source = None
    if sent.has_audio:
        audio_source = SharedAudio(team, None if own is None else own.conditioning.audio_source)
    source_frames = None
    if sent.has_source:
        source_frames = SharedSource(team, None if own is None else own.conditioning.source)
    image_embeds = sent.beginning.conditioning.image_embeds
    if sent.has_many_embeds:
        image_embeds = SharedPictures(team, None if own is None else own.conditioning.image_embeds)
    conditioning = replace(
        sent.beginning.conditioning, references=references, audio=audio_source, source=source_frames,
        image_embeds=image_embeds,
    )  # fmt: skip
    return replace(sent.beginning, conditioning=conditioning)
