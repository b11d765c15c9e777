"""Prompts, pictures and speech through their encoders, whoever holds these.

Legend: R reference pictures, F video frames, n tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..audio.speech import encode_tracks
from ..errors import CheckpointError
from ..memory.budget import GIB, free_device_bytes
from ..memory.hooked import streaming
from ..memory.residency import module_bytes
from ..models.text_encoder import encode_prompts
from ..models.wav2vec2 import Samples
from ..ops.precision import matmul_modes
from ..protocols import AudioSource, References
from ..spool import Spool, check_room
from ..text.cache import TextCache
from ..text.tokenizer import load_tokenizer
from .host import WholeHandle

EMBEDS = "The embeddings of the source's pictures"
EMBEDS_IN_MEMORY = 2**26  # bytes; more than that are in a file


@dataclass(frozen=True)
class Encoders:
    """What a request is encoded with; None for what it does without.

    text_on_cpu: the prompt is encoded where it takes no device memory.
    prompt_cache: folder in which encoded prompts are kept, or None.
    """

    text: WholeHandle | None
    tokenizer: Path | None
    clip_vision: WholeHandle | None
    audio: WholeHandle | None
    text_on_cpu: bool = False
    prompt_cache: Path | None = None

    def check(self, has_audio: bool) -> None:
        """Raises: CheckpointError when what a request needs is not there."""
        self.for_prompts()
        if has_audio:
            self.for_speech()

    def for_prompts(self) -> tuple[WholeHandle, Path]:
        """The text encoder and its tokenizer. Raises: CheckpointError when there is none."""
        if self.text is None or self.tokenizer is None:
            raise missing("the prompt", "models_t5_umt5-xxl-enc-bf16.pth")
        return self.text, self.tokenizer

    def embeds_of(self, prompts: Sequence[str]) -> list[Tensor]:
        """Embeddings [n, dim] of each prompt, on the CPU; the encoder is loaded for those that are not cached."""
        encoder, tokenizer = self.for_prompts()

        def encode(missing: list[str]) -> list[Tensor]:
            return encode_text(encoder, tokenizer, missing, self.text_on_cpu)

        if self.prompt_cache is None:
            return encode(list(prompts))
        device = "cpu" if self.text_on_cpu else encoder.host.device.type
        # What else decides the last bits, so that a cached prompt gives the frames of one that is encoded now.
        place = f"{device} {torch.get_num_threads() if device == 'cpu' else ''} torch {torch.__version__}"
        files = (*encoder.checkpoint.paths, tokenizer)
        dim = encoder.checkpoint.identity.dim
        assert dim is not None, "a text encoder is known by it"
        return TextCache(self.prompt_cache, files, f"{encoder.precision} {place}", dim).get(prompts, encode)

    def for_speech(self) -> WholeHandle:
        """The audio encoder. Raises: CheckpointError when there is none."""
        if self.audio is None:
            raise missing("speech", "chinese-wav2vec2-base")
        return self.audio


def missing(what: str, example: str) -> CheckpointError:
    """That no model was named for something."""
    return CheckpointError(f"There is no model for {what}. Name it, e.g. {example}, or a folder that has it.")


@torch.no_grad()
@matmul_modes()
def encode_text(
    encoder: WholeHandle, tokenizer: str | Path, prompts: Sequence[str], on_cpu: bool = False
) -> list[Tensor]:
    """Embeddings [n, dim] of each prompt, on the CPU. Blocks of an encoder that does not fit the device stream."""
    device = torch.device("cpu") if on_cpu else encoder.host.device
    on_gpu = device.type == "cuda"

    def place() -> None:
        needed = module_bytes(encoder.loaded.model) + GIB
        if not on_gpu or needed <= free_device_bytes(device) + encoder.device_bytes:
            encoder.loaded.place()

    fits = on_gpu and encoder.expected_bytes + GIB <= encoder.host.obtainable_bytes()
    with encoder.in_use(place, is_resident=fits, on_cpu=on_cpu) as model:
        streams = on_gpu and encoder.device_bytes == 0
        with streaming(model, model.encoder.block, device) if streams else nullcontext():
            return [embeds.cpu() for embeds in encode_prompts(model, load_tokenizer(tokenizer), prompts)]


@torch.no_grad()
@matmul_modes()
def encode_images(encode: Callable[[Tensor], Tensor], references: References) -> Tensor:
    """What CLIP makes of each reference [3, H, W] in -1..1 as the video shows it: [R, 257, dim] on the CPU.

    encode: pictures [1, 3, H, W] -> [1, 257, dim].
    """
    return torch.cat([encode(references[index][None]).cpu() for index in range(len(references))])


def encode_references(encode: Callable[[Tensor], Tensor], references: References) -> References:
    """As `encode_images`; those of many are in a temporary file (an hour with a source video: 1.6 GB in float32).

    Raises: OutputError when the disk has no room for them.
    """
    if len(references) == 1:
        return encode_images(encode, references)
    embeds: SpooledEmbeds | None = None
    for index in range(len(references)):
        (tokens,) = encode_images(encode, [references[index]])
        if embeds is None:
            embeds = SpooledEmbeds(len(references), tokens)
        embeds.put(index, tokens)
    assert embeds is not None, "a video has a picture"
    return embeds


class SpooledEmbeds:
    """Embeddings [257, dim] of so many pictures, to the bit as they were put in; one that is read is a copy.

    Args: like: one of them, whose shape and type all have.
    Raises: OutputError when the disk has no room for all of them.
    """

    def __init__(self, count: int, like: Tensor) -> None:
        self._count, self._shape, self._dtype, self._size = count, like.shape, like.dtype, like.nbytes
        if count * self._size > EMBEDS_IN_MEMORY:
            check_room(EMBEDS, count * self._size)
        self._spool = Spool(EMBEDS, np.uint8, in_memory=EMBEDS_IN_MEMORY)

    def __len__(self) -> int:
        return self._count

    def put(self, index: int, embeds: Tensor) -> None:
        self._spool.write(index * self._size, embeds.contiguous().flatten().view(torch.uint8).numpy())

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self._count:
            raise IndexError(f"embeddings {index} of {self._count}")
        data = self._spool.read(index * self._size, (index + 1) * self._size)
        return torch.from_numpy(data.copy()).view(self._dtype).reshape(self._shape)


@torch.no_grad()
@matmul_modes()
def encode_audio(encoder: WholeHandle, tracks: Sequence[Samples], fps: float) -> AudioSource:
    """Features of every speaker's track."""
    with encoder.in_use() as model:
        return encode_tracks(model, tracks, fps)
