"""A model's files as one value: opened and recognized once, then planned with, measured and loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError, TalkError
from ..untrusted import answered
from .detect import SLOTS, Identity, canonical, check_fit, describe, identify
from .dialects import Kind, dequantized
from .quantize import BLOCKS, check_quanto_map, packed, with_markers
from .reader import TensorSource, files_at, open_tensors
from .tables import check_shapes

IMAGE_CHANNELS = 36  # of latents, of their mask and of a picture's latents
_SPEAKERS = re.compile(r"(?<![a-z])(single(?![ _-]?file)|multi)(?![a-z])")
Tensors = str | Path | Sequence[str | Path] | Mapping[str, Tensor] | TensorSource


@dataclass(frozen=True)
class Checkpoint:
    """What a model's files hold. Names, shapes and dtypes are known, tensors are read when they are asked for.

    Args:
        paths: all of its files; none where its tensors came from memory.
        source: its tensors as the files call them.
        identity: what it is.
        is_borrowed: its tensors are those of a caller's state dict, who may write to them.
    """

    paths: tuple[Path, ...]
    source: TensorSource
    identity: Identity
    is_borrowed: bool = False

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.source.name

    @property
    def kind(self) -> Kind:
        return self.identity.kind

    @property
    def is_single(self) -> bool | None:
        """Whether an audio adapter is for one speaker only; None where neither name nor metadata tells.

        The keys of adapters for one and for several are the same. Metadata counts first, then the file's name, then
        that of its folder (InfiniteTalk/single/infinitetalk.safetensors).
        """
        if not self.identity.has_audio:
            return None
        texts = [self.source.metadata.get(key, "") for key in ("modelspec.title", "title", "name")]
        texts += [name for path in self.paths[:1] for name in (path.stem, path.parent.name)]
        for text in texts:
            words = set(_SPEAKERS.findall(text.lower()))
            if len(words) == 1:
                return words == {"single"}
        return None

    @cached_property
    def canonical(self) -> TensorSource:
        """Its tensors by the model's own names, each weight with its scales as one.

        Raises: CheckpointError or UnsupportedError for a storage format that is damaged or cannot be read, and for
            tensors that decide the model's sizes and do not fit each other.
        """
        with answered(self.name, CheckpointError):
            if len(self.paths) == 1:
                check_quanto_map(self.paths[0], self.source)
            renamed = canonical(self.source, self.identity)
            tensors = (packed if self.kind in BLOCKS else dequantized)(renamed)
        check_shapes(self.name, self.kind, tensors.shapes)
        return tensors


def recognize(weights: Tensors) -> Checkpoint:
    """Open files or a state dict and tell what they are. Their headers are read here, and never again.

    Args: weights: as for `open_tensors`.
    Raises: CheckpointError: nothing is there, it is damaged or incomplete, or it is no file of weights.
    """
    source = open_tensors(weights)
    with answered(source.name, CheckpointError):
        source = with_markers(source)
        identity = identify(source)
    paths: tuple[Path, ...] = ()
    if not isinstance(weights, Mapping):
        listed = [Path(path).expanduser() for path in ([weights] if isinstance(weights, str | Path) else weights)]
        paths = tuple(files_at(listed[0]) if len(listed) == 1 else listed)
    is_borrowed = isinstance(weights, Mapping) and not isinstance(weights, TensorSource)
    return Checkpoint(paths, source, identity, is_borrowed)


def identity_of(path: Path, kind: Kind) -> Identity | None:
    """What a file is; None where it is of another kind or cannot be used."""
    try:
        with answered(path.name, CheckpointError):
            found = recognize(path)
            if found.identity.kind is Kind.TRANSFORMER:
                check_image_to_video(found)
    except (TalkError, OSError):
        return None
    return found.identity if found.identity.kind is kind else None


def check_image_to_video(base: Checkpoint) -> None:
    """Raises: CheckpointError when a transformer takes no picture, as a text-to-video one."""
    channels = base.identity.channels
    if channels is not None and channels != IMAGE_CHANNELS:
        slot = SLOTS[Kind.TRANSFORMER]
        raise CheckpointError(
            f"{describe(base.identity, base.name)}, which takes no picture.\nUse {slot.wanted}, e.g. {slot.example} "
            f"in models/{slot.folder}."
        )


def check_speakers(source: Checkpoint, num_speakers: int) -> None:
    """Check that an adapter was trained for this many speakers, where its name or metadata tells.

    Args: source: the adapter, or the transformer that it is merged into.
    Raises: CheckpointError for more than one with an adapter for a single person.
    """
    if num_speakers > 1 and source.is_single:
        raise CheckpointError(
            f"{source.name} is an audio adapter for one person, by its name; there are {num_speakers} speakers, who "
            "would all move their lips together.\nUse the multi version (infinitetalk_multi, or MultiTalk)."
        )


def with_adapter(base: Checkpoint, adapter: Checkpoint | None) -> TensorSource:
    """The transformer's tensors with those of a separate audio adapter, which take the place of any that it has.

    Raises: CheckpointError when the two do not fit each other.
    """
    if adapter is None:
        return base.canonical
    own, other = base.canonical, adapter.canonical
    check_fit(base.name, base.identity, adapter.name, adapter.identity)
    return own.only(lambda key: not is_audio_key(key)) | other


def is_audio_key(key: str) -> bool:
    """Whether a canonical name of the transformer belongs to the audio adapter."""
    return key.startswith("audio_proj.") or ".audio_cross_attn." in key or ".norm_x." in key
