"""The sound of the finished video: the user's own files at their own quality, never the 16 kHz copy for the model.

Legend: C channels, n samples; sound is float32 [C, n] numpy, about -1..1.
"""

from __future__ import annotations

import io
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np

from ..audio.container import open_container, sound_stream, tick_s
from ..audio.decode import LOUDEST, MAX_GAP_S, SoundFile, check_format, check_values
from ..errors import InputError
from ..request import AUDIO_TYPES

COPYABLE = ("aac", "mp3", "ac3", "eac3", "opus")  # what players expect in an mp4
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1"}  # what is not here is mixed to stereo
AAC_BIT_RATE = 256_000
BIT_RATE_PER_CHANNEL = 96_000
SHORTFALL_S = 0.04  # a copied track may end this much early: one frame of video
PEAK = 0.95  # of a mix; AAC overshoots a little
LEAD_IN = 1024  # samples of silence before the start: the encoder spoils a sound that begins at once
BLOCK = 2**16
TRIAL_PACKETS = 8

log = logging.getLogger("wanvideo")


@dataclass(frozen=True, eq=False)
class Waveform:
    """Sound in memory: samples float [C, n] or [n], about -1..1; rate in Hz."""

    samples: np.ndarray
    rate: int

    def __post_init__(self) -> None:
        samples = np.atleast_2d(np.asarray(self.samples, np.float32))
        if samples.ndim != 2 or not samples.shape[1] or samples.shape[0] > samples.shape[1]:
            raise InputError(f"Sound of shape {np.shape(self.samples)} is not usable. Give [channels, samples].")
        if not isinstance(self.rate, int):
            raise InputError(f"The sound's rate {self.rate!r} is not usable. Give a whole number of Hz.")
        check_format(self.rate, samples.shape[0], "the soundtrack")
        check_values(samples, "The soundtrack")
        object.__setattr__(self, "samples", samples)

    @property
    def channels(self) -> int:
        return len(self.samples)

    @property
    def layout(self) -> None:
        """Nothing is known of where the channels belong."""

    def pieces(self) -> Iterator[np.ndarray]:
        """As those of `SoundFile`: [n, C]."""
        for start in range(0, self.samples.shape[1], BLOCK):
            yield self.samples[:, start : start + BLOCK].T


@dataclass(frozen=True)
class Soundtrack:
    """The sound of the video.

    Args:
        sources: sound or video files, or waveforms, in the order of the speakers. A single file is copied as it is
            where an mp4 can hold it and it is long enough, else coded as AAC at its own rate and channels. Several
            are mixed at the rate of the first, and only made quieter if they would clip.
        placement: para, all start together, or add, one after another.
    Raises: InputError when a file is missing or holds no sound.
    """

    sources: tuple[str | Path | Waveform, ...]
    placement: str = "para"

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError("The soundtrack names no sound. Give at least one file, or no soundtrack.")
        if self.placement not in AUDIO_TYPES:
            raise InputError(f"audio_type {self.placement!r} is not offered. Use one of {', '.join(AUDIO_TYPES)}.")
        for source in self.sources:
            if not isinstance(source, Waveform):
                next(SoundFile(source).pieces())


def add_soundtrack(
    output: av.container.OutputContainer, soundtrack: Soundtrack, duration_s: Fraction
) -> Iterator[av.Packet[av.AudioStream]]:
    """Add an audio stream to `output` at once, and return the packets that fill it for exactly `duration_s`.

    Returns: packets in order; they end with the video to within one audio frame, silence fills what is missing.
    """
    source = soundtrack.sources[0]
    if len(soundtrack.sources) > 1 or isinstance(source, Waveform) or not _is_copyable(source, duration_s):
        return encode_soundtrack(output, soundtrack, duration_s)
    container, stream = _open(source)
    return _copy(container, stream, output.add_stream_from_template(stream), duration_s)


def encode_soundtrack(
    output: av.container.OutputContainer, soundtrack: Soundtrack, duration_s: Fraction
) -> Iterator[av.Packet[av.AudioStream]]:
    """As `add_soundtrack`, as AAC in any case, which a file can hold whose end is not written yet."""
    sounds = tuple(source if isinstance(source, Waveform) else SoundFile(source) for source in soundtrack.sources)
    rate, channels = _format(sounds)
    stream = output.add_stream("aac", rate=rate, layout=LAYOUTS[channels])
    stream.codec_context.bit_rate = max(AAC_BIT_RATE, BIT_RATE_PER_CHANNEL * channels)
    mix = partial(_mix, sounds, soundtrack.placement, rate, channels, round(duration_s * rate))
    could_clip = len(sounds) > 1 or sounds[0].channels > channels
    return _encode(mix, stream, rate, channels, could_clip)


def _open(path: str | Path) -> tuple[av.container.InputContainer, av.AudioStream]:
    container = open_container(path, "a sound file")
    return container, sound_stream(container, path)


def _is_copyable(source: str | Path, duration_s: Fraction) -> bool:
    """Whether a file's stream is long enough, and an mp4 takes it."""
    return _is_taken(source, duration_s) and _lasts(source, duration_s)


def _is_taken(source: str | Path, duration_s: Fraction) -> bool:
    """Whether an mp4 takes the stream, tried with its first packets: some kinds of a codec are refused."""
    container, stream = _open(source)
    with closing(container):
        if stream.codec_context.codec.canonical_name not in COPYABLE:
            return False
        try:
            with av.open(io.BytesIO(), "w", format="mp4") as trial:
                copy = trial.add_stream_from_template(stream)
                for _, packet in itertools.islice(_shifted(container, stream, duration_s), TRIAL_PACKETS):
                    packet.stream = copy
                    trial.mux(packet)
        except (av.FFmpegError, ValueError) as error:
            log.info("%s cannot be copied into an mp4 (%s); it is coded as AAC.", source, error)
            return False
    return True


def _lasts(path: str | Path, duration_s: Fraction) -> bool:
    """Whether the packets of a file reach the end, and their times only rise.

    Recordings that were joined begin anew somewhere, which an mp4 refuses; a jump that is too far for a pause is read
    as none.
    """
    container, stream = _open(path)
    start_s, end_s = None, Fraction(0)
    with closing(container):
        for next_s, packet in _shifted(container, stream, duration_s):
            if start_s is not None and not start_s < next_s < end_s + Fraction(MAX_GAP_S):
                return False
            start_s, end_s = next_s, next_s + (packet.duration or 0) * tick_s(stream)
    return end_s >= duration_s - Fraction(SHORTFALL_S)


def _copy(
    container: av.container.InputContainer, stream: av.AudioStream, copy: av.AudioStream, duration_s: Fraction
) -> Iterator[av.Packet[av.AudioStream]]:
    with closing(container):
        for _, packet in _shifted(container, stream, duration_s):
            packet.stream = copy
            yield packet


def _shifted(
    container: av.container.InputContainer, stream: av.AudioStream, duration_s: Fraction
) -> Iterator[tuple[Fraction, av.Packet[av.AudioStream]]]:
    """(start in seconds, packet) up to `duration_s`, 0 being the first audible sample: a coder's lead-in lies before.

    They end where FFmpeg fails; what is too short for that is decoded, which goes further.
    """
    start = stream.start_time or 0
    with suppress(av.FFmpegError):
        for packet in container.demux(stream):
            if packet.size and packet.pts is not None:
                packet.pts = packet.dts = packet.pts - start
                if (start_s := packet.pts * tick_s(stream)) >= duration_s:
                    return
                yield start_s, packet


def _format(sounds: Sequence[SoundFile | Waveform]) -> tuple[int, int]:
    """Rate and channels of the encoded track."""
    rate = sounds[0].rate
    if rate not in AAC_RATES:
        usable = min((known for known in AAC_RATES if known >= rate), default=AAC_RATES[-1])
        log.info("AAC has no %d Hz; the soundtrack is written at %d Hz.", rate, usable)
        rate = usable
    if len(sounds) == 1:
        channels = sounds[0].channels
        return rate, channels if channels in LAYOUTS else 2
    return rate, 1 if all(sound.channels == 1 for sound in sounds) else 2


def _encode(
    mix: Callable[[], Iterator[np.ndarray]], stream: av.AudioStream, rate: int, channels: int, could_clip: bool
) -> Iterator[av.Packet[av.AudioStream]]:
    gain = 1.0
    if could_clip:
        peak = max(float(np.abs(block).max()) for block in mix())
        gain = min(1.0, PEAK / max(peak, PEAK))
    written = -LEAD_IN
    for block in itertools.chain((np.zeros((channels, LEAD_IN), np.float32),), mix()):
        frame = _frame((block * np.float32(gain)).T, rate, written, LAYOUTS[channels])
        written += block.shape[1]
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _mix(
    sounds: Sequence[SoundFile | Waveform], placement: str, rate: int, channels: int, num_samples: int
) -> Iterator[np.ndarray]:
    """Blocks [C, <= BLOCK] of the mix, `num_samples` in all."""
    decoded = [_at_form(sound, rate, channels) for sound in sounds]
    if placement == "add":
        decoded = [itertools.chain.from_iterable(decoded)]
    exact = [_exactly(pieces, channels, num_samples) for pieces in decoded]
    return (np.sum(blocks, axis=0) for blocks in zip(*exact, strict=True))


def _exactly(pieces: Iterator[np.ndarray], channels: int, num_samples: int) -> Iterator[np.ndarray]:
    """Cut or fill with silence to `num_samples`, in blocks of one size."""
    held = np.zeros((channels, 0), np.float32)
    for start in range(0, num_samples, BLOCK):
        wanted = min(BLOCK, num_samples - start)
        gathered = [held]
        while (missing := wanted - sum(piece.shape[1] for piece in gathered)) > 0:
            piece = next(pieces, None)
            gathered.append(np.zeros((channels, missing), np.float32) if piece is None else piece)
        held = np.concatenate(gathered, 1)
        yield held[:, :wanted]
        held = held[:, wanted:]


def _at_form(sound: SoundFile | Waveform, rate: int, channels: int) -> Iterator[np.ndarray]:
    """[C, n] pieces of a sound at the track's rate and channels; mono is put on every channel."""
    is_mono, start = sound.channels == 1, 0
    resampler = av.AudioResampler("fltp", LAYOUTS[1 if is_mono else channels], rate)
    layout = sound.layout or LAYOUTS.get(sound.channels, f"{sound.channels} channels")
    for piece in _bounded(sound) if isinstance(sound, SoundFile) else sound.pieces():
        frame = _frame(piece, sound.rate, start, layout)
        start += len(piece)
        yield from _planes(resampler.resample(frame), channels if is_mono else 1)
    yield from _planes(resampler.resample(None), channels if is_mono else 1)


def _planes(frames: list[av.AudioFrame], times: int) -> Iterator[np.ndarray]:
    return (np.repeat(frame.to_ndarray(), times, 0) for frame in frames)


def _bounded(sound: SoundFile) -> Iterator[np.ndarray]:
    """Pieces without what the coder would refuse, once all pictures are there: files may change after the check."""
    is_said = False
    for piece in sound.pieces():
        if not np.abs(piece).max() <= LOUDEST:
            if not is_said:
                log.warning("The sound of %s has values that no soundtrack can hold; they are cut.", sound.path)
            is_said, piece = True, np.clip(np.nan_to_num(piece, nan=0.0), -LOUDEST, LOUDEST)
        yield piece


def _frame(samples: np.ndarray, rate: int, start: int, layout: str) -> av.AudioFrame:
    """Samples [n, C] as a frame."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples).reshape(1, -1), "flt", layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
    return frame
