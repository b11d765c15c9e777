"""Nodes for sound: the audio encoder, and its features of each speaker's track."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .nodes_base import CATEGORY, DEVICES, LOADERS, Node, checked, choice, expect, flag, number, socket, whole
from .nodes_common import host, logger, models_folder, stop_if_interrupted
from .nodes_files import AUDIO_ENCODERS, FileNode
from .nodes_media import masks_of, samples_of
from .wanvideo.audio.features import silence_features
from .wanvideo.audio.load import SAMPLE_RATE, Sound, from_array
from .wanvideo.audio.mix import mix
from .wanvideo.audio.source import TensorAudio, padded
from .wanvideo.audio.speech import Preparation, prepare_tracks
from .wanvideo.checkpoints.dialects import Kind
from .wanvideo.checkpoints.download import WAV2VEC, download
from .wanvideo.checkpoints.load import load_audio_encoder, open_checkpoint
from .wanvideo.engine.conditioning import Speech
from .wanvideo.engine.encoders import encode_audio
from .wanvideo.engine.host import ModelHandle
from .wanvideo.errors import CheckpointError, InputError
from .wanvideo.geometry import FPS, frames_of
from .wanvideo.memory.residency import WholeResidency
from .wanvideo.request import MAX_SPEAKERS
from .wanvideo.video.regions import check_drawn
from .wanvideo.video.soundtrack import Soundtrack, Waveform

AUDIO = f"{CATEGORY}/audio"
MAX_FRAMES = 10_000_000
PRECISIONS = choice("fp16", "fp32", "bf16", "fp16")


class DownloadAndLoadWav2VecModel(Node):
    CATEGORY = LOADERS
    SEARCH_ALIASES = ["wav2vec2", "chinese-wav2vec2-base", "audio encoder"]
    REQUIRED = {
        "model": choice(WAV2VEC, WAV2VEC, "facebook/wav2vec2-base-960h"),
        "base_precision": PRECISIONS,
        "load_device": choice("main_device", *DEVICES),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WAV2VECMODEL",), ("wav2vec_model",), "loadmodel"

    @classmethod
    def VALIDATE_INPUTS(cls, model=None):
        return checked(lambda: model is None or _check_trained_with(model))

    def loadmodel(self, model, base_precision="fp16", load_device="main_device"):
        _check_trained_with(model)
        return (_encoder(download(model, _home())),)


def _check_trained_with(model: str) -> None:
    if model != WAV2VEC:
        raise InputError(f"{model!r:.200} cannot be used: the audio adapters were trained with {WAV2VEC}. Choose that.")


class Wav2VecModelLoader(FileNode):
    CATEGORY = LOADERS
    SEARCH_ALIASES = ["wav2vec2", "audio encoder"]
    REQUIRED = {
        "model": AUDIO_ENCODERS,
        "base_precision": PRECISIONS,
        "load_device": choice("main_device", *DEVICES),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WAV2VECMODEL",), ("wav2vec_model",), "loadmodel"

    @classmethod
    def VALIDATE_INPUTS(cls, model=None):
        return cls.check_files(model=model)

    def loadmodel(self, model, base_precision="fp16", load_device="main_device"):
        return (_encoder(AUDIO_ENCODERS.find(model)),)


def _home() -> Path:
    return models_folder() / "transformers" / WAV2VEC


def _encoder(path: Path) -> ModelHandle:
    checkpoint = open_checkpoint(path, Kind.AUDIO_ENCODER)
    # Always float32: it is small, and the features decide what the mouth does.
    load = partial(load_audio_encoder, checkpoint, dtype=torch.float32)
    return ModelHandle(checkpoint, host(), load, WholeResidency)


class SpeakerFeatures(Sequence[Tensor]):
    """[frames, layers, channels] of each speaker, read when one is asked for: ComfyUI looks at all values of a mapping
    at each of its links, and those of an hour are gigabytes."""

    def __init__(self, speech: Speech) -> None:
        self._speech = speech

    def __len__(self) -> int:
        return self._speech.audio.num_speakers

    def __getitem__(self, index: Any) -> Any:
        return list(self._speech.audio.features(0, self._speech.num_frames))[index]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self[:])


@dataclass(frozen=True, eq=False)
class MultiTalkEmbeds(Speech, Mapping[str, Any]):
    """Speech that nodes of others read as the dictionary that WanVideoWrapper hands on under the same type."""

    def __getitem__(self, key: str) -> Any:
        if key == "audio_features":
            return SpeakerFeatures(self)
        return {
            "audio_scale": self.scale, "audio_cfg_scale": self.guidance_scale, "ref_target_masks": self.regions
        }[key]  # fmt: skip

    def __iter__(self) -> Iterator[str]:
        return iter(("audio_features", "audio_scale", "audio_cfg_scale", "ref_target_masks"))

    def __len__(self) -> int:
        return 4


class MultiTalkWav2VecEmbeds(Node):
    CATEGORY = AUDIO
    SEARCH_ALIASES = ["audio embeds", "speech", "infinitetalk audio", "lip sync"]
    REQUIRED = {
        "wav2vec_model": socket("WAV2VECMODEL"),
        "audio_1": socket("AUDIO"),
        "normalize_loudness": flag(True),
        "num_frames": whole(0, 0, MAX_FRAMES),
        "fps": number(25.0, 1.0, 60.0, 0.1),
        "audio_scale": number(1.0, 0.0, 100.0),
        "audio_cfg_scale": number(1.0, 0.0, 100.0),
        "multi_audio_type": choice("para", "para", "add"),
    }
    OPTIONAL = {
        "audio_2": socket("AUDIO"),
        "audio_3": socket("AUDIO"),
        "audio_4": socket("AUDIO"),
        "ref_target_masks": socket("MASK"),
        "add_noise_floor": flag(False),
        "smooth_transients": flag(False),
        "mask_1": socket("MASK"),
        "mask_2": socket("MASK"),
        "mask_3": socket("MASK"),
        "mask_4": socket("MASK"),
    }
    RETURN_TYPES = ("MULTITALK_EMBEDS", "AUDIO", "INT")
    RETURN_NAMES = ("multitalk_embeds", "audio", "num_frames")
    FUNCTION = "process"

    @classmethod
    def VALIDATE_INPUTS(
        cls, num_frames=None, fps=None, audio_scale=None, audio_cfg_scale=None, audio_1=False, audio_2=False,
        audio_3=False, audio_4=False, ref_target_masks=False, mask_1=False, mask_2=False, mask_3=False, mask_4=False,
    ):  # fmt: skip
        def check() -> None:
            cls.known(num_frames=num_frames, fps=fps, audio_scale=audio_scale, audio_cfg_scale=audio_cfg_scale)
            num_speakers = sum(audio is not False for audio in (audio_1, audio_2, audio_3, audio_4))
            masks = {"mask_1": mask_1, "mask_2": mask_2, "mask_3": mask_3, "mask_4": mask_4}
            singles = [name for name, mask in masks.items() if mask is not False]
            if ref_target_masks is False:
                check_regions(len(singles), num_speakers)
            else:
                _check_one_way(singles)  # how many are in the batch shows when it is there

        return checked(check)

    def process(
        self, wav2vec_model, audio_1, normalize_loudness=True, num_frames=0, fps=25.0, audio_scale=1.0,
        audio_cfg_scale=1.0, multi_audio_type="para", audio_2=None, audio_3=None, audio_4=None, ref_target_masks=None,
        add_noise_floor=False, smooth_transients=False, mask_1=None, mask_2=None, mask_3=None, mask_4=None,
    ):  # fmt: skip
        self.check_widgets(num_frames=num_frames, fps=fps, audio_scale=audio_scale, audio_cfg_scale=audio_cfg_scale)
        encoder = expect(wav2vec_model, ModelHandle, "wav2vec_model")
        given = {"audio_1": audio_1, "audio_2": audio_2, "audio_3": audio_3, "audio_4": audio_4}
        masks = regions(ref_target_masks, {"mask_1": mask_1, "mask_2": mask_2, "mask_3": mask_3, "mask_4": mask_4})
        how = Preparation(normalize_loudness, add_noise_floor, smooth_transients, num_frames / fps)
        speech = encode_speech(encoder, given, masks, multi_audio_type, how, num_frames, fps)
        speech = replace(speech, scale=audio_scale, guidance_scale=audio_cfg_scale)
        samples, rate = mix([samples_of(audio, name) for name, audio in given.items() if audio is not None],
                            multi_audio_type, speech.num_frames / fps)  # fmt: skip
        return speech, {"waveform": torch.from_numpy(samples)[None], "sample_rate": rate}, speech.num_frames


def encode_speech(
    encoder: ModelHandle, given: Mapping[str, Any], masks: Tensor | None, placement: str, how: Preparation,
    num_frames: int = 0, fps: float = FPS,
) -> MultiTalkEmbeds:  # fmt: skip
    """What moves the speakers' mouths.

    Args: given: AUDIO inputs by their names, None for unlinked ones. masks: [S, H, W]. num_frames: at most; 0: all.
    """
    waves = {name: samples_of(audio, name) for name, audio in given.items() if audio is not None}
    check_regions(0 if masks is None else len(masks), len(waves))
    sounds: list[Sound | None] = [from_array(samples, rate, name) for name, (samples, rate) in waves.items()]
    sounds += [None] * ((0 if masks is None else len(masks)) - len(sounds))  # people who only listen
    say_if_other_rate(fps)
    say_if_cut([sound.duration_s for sound in sounds if sound], placement, num_frames, fps)
    tracks = prepare_tracks(sounds, placement, how)
    if masks is not None and len(masks) > 1:
        check_drawn([mask.cpu().numpy() > 0.5 for mask in masks])
    frames = frames_of(len(tracks[0]) / SAMPLE_RATE, fps)
    frames = min(frames, num_frames) if num_frames else frames
    encoded = encode_audio(encoder, tracks, fps)
    stop_if_interrupted()
    encoder.offload()
    soundtrack = Soundtrack(tuple(Waveform(*wave) for wave in waves.values()), placement)
    return MultiTalkEmbeds(encoded, frames, fps, regions=masks, soundtrack=soundtrack)


def say_if_other_rate(fps: float) -> None:
    if fps != FPS:
        logger.warning("fps %g: the audio adapters were trained at %g, other rates move lips less well.", fps, FPS)


def speech_seconds(durations: list[float], placement: str) -> float:
    """How long speech lasts in all. placement: para, all start together, or add, one after another."""
    return sum(durations) if placement == "add" else max(durations)


def say_if_cut(durations: list[float], placement: str, num_frames: int, fps: float) -> None:
    whole_s = speech_seconds(durations, placement)
    if num_frames and frames_of(whole_s, fps) > num_frames:
        logger.warning(
            "num_frames %d ends the video after %.2f s of %.2f s of speech. 0 takes all of it.",
            num_frames, num_frames / fps, whole_s,
        )  # fmt: skip


class MultiTalkSilentEmbeds(Node):
    CATEGORY = AUDIO
    SEARCH_ALIASES = ["silence", "no audio"]
    REQUIRED = {"num_frames": whole(81, 1, MAX_FRAMES)}
    OPTIONAL = {"wav2vec_model": socket("WAV2VECMODEL")}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("MULTITALK_EMBEDS",), ("multitalk_embeds",), "process"

    def process(self, num_frames=81, wav2vec_model=None):
        encoder = expect(wav2vec_model or _any_encoder(), ModelHandle, "wav2vec_model")
        with torch.inference_mode():
            silence = silence_features(encoder.load(), FPS)
        encoder.offload()
        return (MultiTalkEmbeds(padded(TensorAudio([silence[:num_frames]], silence), num_frames), num_frames, FPS),)


def _any_encoder() -> ModelHandle:
    """The audio encoder that is on this machine, for the node that has no input for it in users' graphs."""
    if _home().is_dir():
        return _encoder(_home())
    names = AUDIO_ENCODERS.names()
    if not names:
        raise CheckpointError("Silence is encoded too: connect wav2vec_model, or put one into models/wav2vec2.")
    return _encoder(AUDIO_ENCODERS.find(names[0]))


def regions(batch: Tensor | None, single: dict[str, Tensor | None]) -> Tensor | None:
    """The speakers' masks [S, H, W], from one batch or from a mask each."""
    given = {name: masks_of(mask, name)[:1] for name, mask in single.items() if mask is not None}
    if batch is not None:
        _check_one_way(list(given))
        return masks_of(batch, "ref_target_masks")
    if not given:
        return None
    sizes = {name: tuple(mask.shape[-2:]) for name, mask in given.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {width}x{height}" for name, (height, width) in sizes.items())
        raise InputError(f"The masks have different sizes: {listed}. Paint all of them on the same picture.")
    return torch.cat(list(given.values()))


def _check_one_way(singles: list[str]) -> None:
    if singles:
        raise InputError(f"ref_target_masks and {', '.join(singles)} are connected. Use the batch or single masks.")


def check_regions(num_masks: int, num_speakers: int) -> None:
    if not num_masks:
        if num_speakers > 2:
            raise InputError(
                f"{num_speakers} speakers need a mask each; only two can be placed by themselves, left and right. "
                f"Connect mask_1 to mask_{num_speakers}, or a batch of {num_speakers} to ref_target_masks."
            )
    elif num_masks < num_speakers or num_masks > MAX_SPEAKERS:
        raise InputError(
            f"{num_masks} masks for {num_speakers} speakers: give one for each, in their order, and further ones for "
            f"people who only listen, at most {MAX_SPEAKERS} in all."
        )


NODES = (DownloadAndLoadWav2VecModel, Wav2VecModelLoader, MultiTalkWav2VecEmbeds, MultiTalkSilentEmbeds)
