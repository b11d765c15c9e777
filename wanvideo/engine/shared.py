"""What one rank has encoded, on all ranks: small tensors at once, sound and pictures when they are asked for.

Legend: R reference pictures, S speakers, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..parallel.team import PeerStopped, Team
from ..protocols import AudioSource, SourceFrames
from ..sampling.conditioning import Conditioning
from ..sampling.state import WindowState


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
        entries, self._num_frames = self._team.share(
            None if own is None else (own.features(start, stop).clone(), own.num_frames)
        )
        return entries


class SharedPictures(Sequence[Tensor]):
    """The first rank's pictures [R, 3, H, W]; all ranks ask for the same ones in the same order."""

    def __init__(self, team: Team, own: Sequence[Tensor] | Tensor | None) -> None:
        self._team, self._own = team, own
        self._count: int = team.share(None if own is None else len(own))
        self._last: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        """One picture; slices are not asked for."""
        if self._last is None or self._last[0] != index:
            own = self._own
            self._last = index, self._team.share(None if own is None else own[index].clone())
        return self._last[1]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))


class SharedSource:
    """The first rank's `SourceFrames`; all ranks ask for the same frames in the same order."""

    def __init__(self, team: Team, own: SourceFrames | None) -> None:
        self._team, self._own = team, own

    def frames(self, start: int, stop: int) -> Tensor:
        return self._team.share(None if self._own is None else self._own.frames(start, stop).clone())

    def region(self, start: int, stop: int) -> Tensor:
        return self._team.share(None if self._own is None else self._own.region(start, stop).clone())


@dataclass(frozen=True)
class Beginning:
    """What a video is rendered from: its conditioning, and the state after the windows that are there already."""

    conditioning: Conditioning
    state: WindowState | None = None


@dataclass(frozen=True)
class _Sent:
    """What goes to the other ranks at once: a beginning without sound, pictures and source, or why there is none."""

    beginning: Beginning | None
    has_audio: bool = False
    has_source: bool = False
    problem: str = ""


def share_beginning(team: Team | None, begin: Callable[[], Beginning | None]) -> Beginning | None:
    """What `begin` makes on the first rank, on all of them; None where there is nothing to do.

    Raises: what `begin` raises, on the first rank; PeerStopped on the others.
    """
    if team is None:
        return begin()
    own, error = None, None
    if team.index == 0:
        try:
            own = begin()
        except BaseException as problem:  # noqa: BLE001 - whatever it is, the others must not wait
            error = problem
    sent = None
    if team.index == 0:
        audio = own is not None and own.conditioning.audio_source is not None
        light = None
        if own is not None:
            light = replace(own, conditioning=replace(own.conditioning, references=(), audio=None, source=None))
        source = own is not None and own.conditioning.source is not None
        sent = _Sent(light, audio, source, "" if error is None else f"{type(error).__name__}: {error}")
    sent = team.share(sent)
    if error is not None:
        raise error
    if sent.problem:
        raise PeerStopped(f"Rank 0 ended the job: {sent.problem}")
    if sent.beginning is None:
        return None
    references = SharedPictures(team, None if own is None else own.conditioning.references)
    audio_source = None
    if sent.has_audio:
        audio_source = SharedAudio(team, None if own is None else own.conditioning.audio_source)
    source_frames = None
    if sent.has_source:
        source_frames = SharedSource(team, None if own is None else own.conditioning.source)
    conditioning = replace(
        sent.beginning.conditioning, references=references, audio=audio_source, source=source_frames
    )  # fmt: skip
    return replace(sent.beginning, conditioning=conditioning)
