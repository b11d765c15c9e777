"""Sound files to samples: any container, one channel, one rate."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import InputError

SAMPLE_RATE = 16000  # what the audio encoder hears
SILENCE_DBFS = -60.0
BLOCK = 2**20  # samples decoded at once


@dataclass(frozen=True, eq=False)
class Sound:
    """samples float32 [N], about -1..1; sample_rate in Hz; name: of the file, for messages."""

    samples: np.ndarray
    sample_rate: int
    name: str = "the sound"

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.sample_rate

    @property
    def level_dbfs(self) -> float:
        """Root mean square, in decibels below full scale; -inf for digital silence."""
        power = float(np.mean(np.square(self.samples, dtype=np.float64)))
        return 10 * np.log10(power) if power else -np.inf

    def cut(self, duration_s: float) -> Sound:
        """The first `duration_s` seconds."""
        return replace(self, samples=self.samples[: round(duration_s * self.sample_rate)])


def load_audio(path: str | Path, sample_rate: int = SAMPLE_RATE) -> Sound:
    """The sound of a sound or video file: the mean of its channels, at `sample_rate`.

    Raises: InputError when the file is missing, is no sound, holds none, or holds values that are no numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no sound file {path}.")
    samples, rate = _decode(path)
    return from_array(samples, rate, str(path), sample_rate)


def from_array(samples: np.ndarray, rate: int, name: str = "the sound", sample_rate: int = SAMPLE_RATE) -> Sound:
    """Sound from float samples [channels, N] at `rate` Hz; resampled as librosa does (soxr, high quality)."""
    samples = np.atleast_2d(np.asarray(samples, np.float32))
    if not samples.shape[-1]:
        raise InputError(f"{name} is empty: it has no samples.")
    if not np.isfinite(samples).all():
        raise InputError(f"{name} has values that are no numbers (NaN or infinite). Decode or export it again.")
    mono = samples.mean(0)
    if rate != sample_rate:
        import librosa

        mono = librosa.resample(mono, orig_sr=rate, target_sr=sample_rate, res_type="soxr_hq")
    return Sound(np.ascontiguousarray(mono, np.float32), sample_rate, name)


def check_speech(sound: Sound, who: str) -> None:
    """Raises: InputError when a speaker's sound is silent, since that speaker would never move."""
    if sound.level_dbfs < SILENCE_DBFS:
        level = "digital silence" if np.isinf(sound.level_dbfs) else f"{sound.level_dbfs:.0f} dBFS"
        raise InputError(
            f"The sound of {who}, {sound.name}, is silent ({level}), so nobody would speak. "
            "Give a file with speech; for a person who only listens give none."
        )


def _decode(path: Path) -> tuple[np.ndarray, int]:
    """float32 [1, N] and its rate: by libsndfile, which is exact for wav and flac, else by FFmpeg.

    Channels are averaged block by block, so that a long stereo file is never in memory as such.
    """
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            blocks = [block.mean(1) for block in file.blocks(BLOCK, dtype="float32", always_2d=True)]
            return _joined(blocks), file.samplerate
    except (soundfile.LibsndfileError, TypeError):  # TypeError: headerless sound, as *.raw is taken for
        return _decode_with_ffmpeg(path)


def _decode_with_ffmpeg(path: Path) -> tuple[np.ndarray, int]:
    import av

    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.audio:
                raise InputError(f"{path} holds no sound. Give a file with a sound track.")
            stream = container.streams.audio[0]
            rate = stream.rate
            resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=rate)
            frames = itertools.chain(container.decode(stream), [None])  # None: what the resampler still holds
            blocks = [piece.to_ndarray().mean(0) for frame in frames for piece in resampler.resample(frame)]
    except (av.FFmpegError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as sound ({error.strerror}). Give wav, flac, mp3, m4a or a video."
        ) from None
    if not blocks:
        raise InputError(f"{path} holds a sound track without any sound. It may be cut off.")
    return _joined(blocks), rate


def _joined(blocks: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(blocks or [np.zeros(0, np.float32)])[None]
