"""The seams of the library: what an implementation of each has to give, and who asks for it.

None of the Protocols is a base class. A class that has the members fits, wherever it is written.
Legend: S speakers, F video frames, H W pixel rows and columns, T latent frames, h w latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    Blocks = Sequence[nn.Module] | nn.ModuleList

Key = TypeVar("Key", bound=Hashable)
Block = TypeVar("Block", bound="nn.Module")
NoiseFn = Callable[[tuple[int, ...]], "Tensor"]
"""Standard normal float32 noise of a shape. The order in which a window asks for it is part of the result."""


class AudioSource(Protocol):
    """What the audio encoder says of each speaker, one entry a video frame, made or read when it is asked for.

    num_speakers: S. num_frames: entries of every speaker; None while that is not known (live audio).
    silence: [n, layers, channels] float32, the entries of nobody speaking, with which a track is continued.
    """

    num_speakers: int
    silence: Tensor

    @property
    def num_frames(self) -> int | None: ...

    def features(self, start: int, stop: int) -> Tensor:
        """Entries of the frames start..stop of every speaker, 0 <= start < stop <= num_frames.

        While num_frames is None this waits for the entries; where the sound ends before stop there are fewer of them,
        and num_frames is known from then on.
        Returns: [S, stop - start, layers, channels] float32 on the CPU. Nothing else of a track needs to be in memory.
        """
        ...


class References(Protocol):
    """The reference pictures of a video, [3, H, W] float32 in -1..1 each: picture k serves window k, the last repeats.

    A tensor [R, 3, H, W] and a list of pictures are some. Others make or read a picture when it is asked for.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor:
        """One picture, 0 <= index < len(self). Raises: IndexError for others."""
        ...


@dataclass(frozen=True)
class KeptFrames:
    """A window of a source video: frames [F, H, W, 3] uint8, and region [F, H, W] float32 from 1, where they are made
    anew, down to 0, where they stay; both on the CPU."""

    frames: Tensor
    region: Tensor


class MotionLatents(Protocol):
    """What of a window's latents is known while it is sampled: what the previous window already showed."""

    def hold(self, latents: Tensor, timestep: float, noise: NoiseFn) -> Tensor:
        """latents [16, T, h, w], which may be written, with what is known put in as it is at timestep 0..1000.

        Called before the first step and after each. The noise it asks for is part of the order of a window's noise.
        """
        ...


class WindowCondition(Protocol):
    """What a mode (infinitetalk, multitalk, ...) gives a window beside prompt and sound. One object serves one run.

    For each window, in order, the loop asks `known`, samples with what it returned, decodes, and moves the colors of
    the frames towards `color_reference`. Everything that differs between modes is said here: the loop asks for no
    mode. A new one is a class with these members that takes (references, codec, geometry, overlap), and its line in
    `sampling.conditions.CONDITIONS`. What a window leaves to the next is in its WindowState and not in the object, so
    that a run can go on in another process; an object only keeps what it can make again.
    """

    def reference_index(self, window_index: int) -> int:
        """The reference picture that serves a window, and with it the image embeddings."""
        ...

    def known(self, window_index: int, last_frames: Tensor | None) -> tuple[Tensor | None, MotionLatents | None]:
        """The known channels [20, T, h, w] float32 (mask 4, latents 16), and the motion latents; None: there are none.

        Asked again after the device ran out of memory, so it must be able to start anew.
        Args: last_frames: [3, m, H, W] in -1..1, with which the window begins; None for the first window of a video.
        """
        ...

    def color_reference(self, window_index: int) -> Tensor | None:
        """The picture [3, H, W] in -1..1 whose colors the frames of a window take on; None: they keep theirs."""
        ...

    def kept(self, window_index: int) -> KeptFrames | None:
        """The window of a source video whose pixels stay outside of a region; None: all of the window is new.

        Colors are then matched inside of the region, to the source in the same place.
        """
        ...


class SourceFrames(Protocol):
    """A source video that a dub keeps parts of, at the result's size and rate; read when it is asked for."""

    def frames(self, start: int, stop: int) -> Tensor:
        """The frames start..stop of the result as the source has them: [F, H, W, 3] uint8 on the CPU.

        There are frames for every number: the source says what follows its end.
        """
        ...

    def region(self, start: int, stop: int) -> Tensor:
        """Where these frames are made anew: [F, H, W] float32, 1 inside, down to 0 where the source's pixels stay."""
        ...


class FrameSink(Protocol):
    """Takes the finished frames of a video in their order: a file, a folder of pictures, a preview, a stream."""

    def write(self, frames: Tensor) -> None:
        """Append frames [F, H, W, 3] uint8 on the CPU; they are not changed and may be kept."""
        ...

    def close(self) -> object:
        """The video is complete. Called once, and then nothing else is. What it returns is the sink's own."""
        ...

    def abandon(self) -> None:
        """The run ended early, by an error or by its user; what was written should stay usable. In place of close."""
        ...


class BlockProvider(Protocol):
    """Decides where the weights of a model's blocks are, and has them on the device when a block runs.

    A model reads its blocks through its provider only (`for block in model.block_provider(model.blocks)`), so weights
    may be resident, in host memory, or shards of other ranks. What changes weights does so inside `editing`.
    """

    def __call__(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """The blocks in order; the weights of each are on the device until the next one is asked for."""
        ...

    def editing(self, blocks: Blocks) -> AbstractContextManager[None]:
        """While the context is open tensors of blocks may be read, written, added and removed, and no forward runs."""
        ...


class ResidentBlocks:
    """The `BlockProvider` of a model whose weights are all on one device, which every model starts with."""

    def __call__(self, blocks: Iterable[Block]) -> Iterator[Block]:
        return iter(blocks)

    def editing(self, blocks: Blocks) -> AbstractContextManager[None]:
        return nullcontext()


class TokenSplit(Protocol):
    """Which of a video's tokens a transformer computes, when others compute the rest: some positions of every frame."""

    def start(self, num_frames: int, num_positions: int) -> None:
        """The tokens that come next are those of T frames of h * w positions each."""
        ...

    def take(self, tokens: Tensor) -> Tensor:
        """tokens [T * h * w, ...], frame-major -> the own ones, frame-major too."""
        ...

    def join(self, tokens: Tensor) -> Tensor:
        """The own tokens [n, D] -> everybody's [T * h * w, D], frame-major."""
        ...

    def first_frame(self, num_frames: int, num_positions: int) -> tuple[tuple[int, int], ...]:
        """Where the first frame's keys lie among all keys of self-attention: runs (start, stop), ascending."""
        ...


class AllTokens:
    """The `TokenSplit` of a model that computes all tokens, which every model starts with."""

    def start(self, num_frames: int, num_positions: int) -> None:
        """Nothing depends on the size."""

    def take(self, tokens: Tensor) -> Tensor:
        return tokens

    def join(self, tokens: Tensor) -> Tensor:
        return tokens

    def first_frame(self, num_frames: int, num_positions: int) -> tuple[tuple[int, int], ...]:
        return ((0, num_positions),)


class RowSplit(Protocol):
    """Which rows of a picture a VAE computes, when others compute the rows above and below.

    size: how many share a picture.
    """

    size: int

    def splits(self, num_rows: int) -> bool:
        """Whether a picture of so many rows of latents is worked on by several; if not, everybody does all of it."""
        ...

    def start(self, num_rows: int) -> None:
        """What comes next is of pictures of so many rows of latents."""
        ...

    def take(self, pictures: Tensor, cell: int) -> Tensor:
        """The own rows of pictures [..., H, W] that have `cell` rows for a row of latents."""
        ...

    def join(self, pictures: Tensor, cell: int) -> Tensor:
        """The own rows [..., rows, W] -> everybody's [..., H, W]."""
        ...

    def edges(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The rows [1, C, T, 1, W] above and below one's own [1, C, T, rows, W]; zeros beyond the picture."""
        ...

    def gather(self, tokens: Tensor) -> Tensor:
        """The own pixels' [T, n, C] -> those of whole pictures [T, N, C], in any order."""
        ...


class Ranks(Protocol):
    """The processes that make one video together, of which this is one. All of them run the same windows and steps.

    index: of this process. size: how many there are.
    """

    index: int
    size: int

    def run_passes(self, passes: Sequence[Key], run: Callable[[Key], Tensor], like: Tensor) -> dict[Key, Tensor]:
        """`run` of every pass of a step, on whichever ranks; everybody gets all results, each of them like `like`."""
        ...

    def agree(self, decision: bool) -> bool:
        """The decision of the first rank, on all of them. Raises: as `check`."""
        ...

    def check(self) -> None:
        """Called by all before every step, and at the end of every part of a window and of the video. Waits for the
        others' hosts.

        Raises: torch.cuda.OutOfMemoryError where another rank ran out of memory and all can begin the part anew;
            UnsupportedError where another one failed or was cancelled.
        """
        ...

    def report(self, error: BaseException) -> None:
        """This rank cannot go on from here because of `error`; the others learn of it in their next `check` or `agree`.

        Raises: UnsupportedError where it ran out of memory and nobody can begin anew: others wait for it, or failed.
        """
        ...


class OneRank:
    """The `Ranks` of a process that works alone."""

    index, size = 0, 1

    def run_passes(self, passes: Sequence[Key], run: Callable[[Key], Tensor], like: Tensor) -> dict[Key, Tensor]:
        return {which: run(which) for which in passes}

    def agree(self, decision: bool) -> bool:
        return decision

    def check(self) -> None:
        """Nobody else is here."""

    def report(self, error: BaseException) -> None:
        """Nobody else is here."""


class WeightSource(Protocol):
    """The files that a model's weights were read from, by the model's own names of them.

    A model carries it, so that a weight that was changed can be had again as it was.
    """

    name: str

    def __contains__(self, key: object) -> bool: ...

    def shape(self, key: str) -> tuple[int, ...]: ...

    def dense(self, key: str, dtype: torch.dtype) -> Tensor:
        """The weight as plain numbers on the CPU, read anew, in memory of its own."""
        ...


class BlockModel(Protocol):
    """A model that reads its blocks through a provider."""

    block_provider: BlockProvider

    @property
    def blocks(self) -> nn.ModuleList: ...

    def get_parameter(self, target: str) -> nn.Parameter: ...


class StepWeights(Protocol):
    """Changes some of a model's weights from step to step, as LoRAs do that have a strength for each step."""

    def prepare(self, device: torch.device) -> None:
        """Called before every forward: have on the device what compiled code will ask for."""
        ...

    @property
    def applied(self) -> tuple[str, ...]:
        """What they are called in messages, with their strengths; empty where nothing is applied."""
        ...

    def set_step(self, model: BlockModel, step: int) -> bool:
        """Change the weights of `model` to those of a step, counted from 0. Returns: whether any changed."""
        ...
