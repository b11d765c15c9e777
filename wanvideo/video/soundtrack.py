"""The sound of the finished video: the user's own files at their own quality, never the 16 kHz copy for the model.

Legend: C channels, n samples; sound is float32 [C, n] numpy, about -1..1.
"""

from __future__ import annotations

import io
import itertools
import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

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
        if not np.isfinite(samples).all():
            raise InputError("The sound has values that are no numbers (NaN or infinite). Decode it again.")
        if not isinstance(self.rate, int) or self.rate < 1:
            raise InputError(f"The sound's rate {self.rate!r} is not usable: it must be a whole number of Hz.")
        object.__setattr__(self, "samples", samples)


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
                _open(source)[0].close()


def add_soundtrack(
    output: av.container.OutputContainer, soundtrack: Soundtrack, duration_s: Fraction
) -> Iterator[av.Packet]:
    """Add an audio stream to `output` at once, and return the packets that fill it for exactly `duration_s`.

    Returns: packets in order; they end with the video to within one audio frame, silence fills what is missing.
    """
    source = soundtrack.sources[0]
    if len(soundtrack.sources) == 1 and _is_copyable(source) and _lasts(source, duration_s - Fraction(SHORTFALL_S)):
        container, stream = _open(source)
        return _copy(container, stream, output.add_stream_from_template(stream), duration_s)
    return encode_soundtrack(output, soundtrack, duration_s)


def encode_soundtrack(
    output: av.container.OutputContainer, soundtrack: Soundtrack, duration_s: Fraction
) -> Iterator[av.Packet]:
    """As `add_soundtrack`, as AAC in any case, which a file can hold whose end is not written yet."""
    rate, channels = _format(soundtrack)
    stream = output.add_stream("aac", rate=rate, layout=LAYOUTS[channels])
    stream.codec_context.bit_rate = max(AAC_BIT_RATE, BIT_RATE_PER_CHANNEL * channels)
    return _encode(soundtrack, stream, rate, channels, round(duration_s * rate))


def _open(path: str | Path) -> tuple[av.container.InputContainer, av.AudioStream]:
    try:
        container = av.open(str(Path(path).absolute()), metadata_errors="replace")
    except FileNotFoundError:
        raise InputError(f"There is no sound file {path}.") from None
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{path} is not a sound file that can be read ({error.strerror}).") from None
    if not container.streams.audio:
        container.close()
        raise InputError(f"{path} holds no sound. Give a sound file, or a video that has sound.")
    return container, container.streams.audio[0]


def _is_copyable(source: str | Path | Waveform) -> bool:
    """Whether an mp4 takes the stream, tried with its first packets: some kinds of a codec are refused."""
    if isinstance(source, Waveform):
        return False
    container, stream = _open(source)
    with closing(container):
        if stream.codec_context.codec.canonical_name not in COPYABLE:
            return False
        try:
            with av.open(io.BytesIO(), "w", format="mp4") as trial:
                copy = trial.add_stream_from_template(stream)
                for packet in itertools.islice(_shifted(container, stream), TRIAL_PACKETS):
                    packet.stream = copy
                    trial.mux(packet)
        except (av.FFmpegError, ValueError) as error:
            log.info("%s cannot be copied into an mp4 (%s); it is coded as AAC.", source, error)
            return False
    return True


def _lasts(path: str | Path, duration_s: Fraction) -> bool:
    container, stream = _open(path)
    with closing(container):
        ends = ((packet.pts + (packet.duration or 0)) * stream.time_base for packet in _shifted(container, stream))
        return any(end >= duration_s for end in ends)


def _copy(
    container: av.container.InputContainer, stream: av.AudioStream, copy: av.AudioStream, duration_s: Fraction
) -> Iterator[av.Packet]:
    with closing(container):
        for packet in _shifted(container, stream):
            if packet.pts * stream.time_base >= duration_s:
                break
            packet.stream = copy
            yield packet


def _shifted(container: av.container.InputContainer, stream: av.AudioStream) -> Iterator[av.Packet]:
    """Packets whose time 0 is the first audible sample: a coder's lead-in lies before it."""
    start = stream.start_time or 0
    for packet in container.demux(stream):
        if packet.size and packet.pts is not None:
            packet.pts -= start
            packet.dts = packet.pts
            yield packet


def _format(soundtrack: Soundtrack) -> tuple[int, int]:
    """Rate and channels of the encoded track."""
    formats = [_source_format(source) for source in soundtrack.sources]
    rate = formats[0][0]
    if rate not in AAC_RATES:
        usable = min((known for known in AAC_RATES if known >= rate), default=AAC_RATES[-1])
        log.info("AAC has no %d Hz; the soundtrack is written at %d Hz.", rate, usable)
        rate = usable
    if len(formats) == 1:
        channels = formats[0][1]
        return rate, channels if channels in LAYOUTS else 2
    return rate, 1 if all(channels == 1 for _, channels in formats) else 2


def _source_format(source: str | Path | Waveform) -> tuple[int, int]:
    if isinstance(source, Waveform):
        return source.rate, source.samples.shape[0]
    container, stream = _open(source)
    with closing(container):
        return stream.codec_context.sample_rate, stream.codec_context.channels


def _encode(
    soundtrack: Soundtrack, stream: av.AudioStream, rate: int, channels: int, num_samples: int
) -> Iterator[av.Packet]:
    gain = 1.0
    if len(soundtrack.sources) > 1 or _source_format(soundtrack.sources[0])[1] > channels:
        peak = max(float(np.abs(block).max()) for block in _mix(soundtrack, rate, channels, num_samples))
        gain = min(1.0, PEAK / max(peak, PEAK))
    written = -LEAD_IN
    silence = np.zeros((channels, LEAD_IN), np.float32)
    for block in itertools.chain((silence,), _mix(soundtrack, rate, channels, num_samples)):
        frame = _frame(block * np.float32(gain), rate, written)
        written += block.shape[1]
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _mix(soundtrack: Soundtrack, rate: int, channels: int, num_samples: int) -> Iterator[np.ndarray]:
    """Blocks [C, <= BLOCK] of the mix, `num_samples` in all."""
    sources = [_decode(source, rate, channels) for source in soundtrack.sources]
    if soundtrack.placement == "add":
        sources = [itertools.chain.from_iterable(sources)]
    exact = [_exactly(source, channels, num_samples) for source in sources]
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


def _decode(source: str | Path | Waveform, rate: int, channels: int) -> Iterator[np.ndarray]:
    """[C, n] pieces of a source at the track's rate; mono is heard on every channel."""
    is_mono = _source_format(source)[1] == 1
    resampler = av.AudioResampler("fltp", LAYOUTS[1 if is_mono else channels], rate)
    for frame in itertools.chain(_frames(source), (None,)):
        for resampled in resampler.resample(frame):
            samples = resampled.to_ndarray()
            yield np.repeat(samples, channels, 0) if is_mono else samples


def _frames(source: str | Path | Waveform) -> Iterator[av.AudioFrame]:
    if isinstance(source, Waveform):
        for start in range(0, source.samples.shape[1], BLOCK):
            yield _frame(source.samples[:, start : start + BLOCK], source.rate, start)
        return
    container, stream = _open(source)
    with closing(container):
        is_damaged = False
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                if not is_damaged:
                    log.warning("The sound of %s is damaged; what cannot be decoded is passed over.", source)
                is_damaged = True
                continue
            for frame in frames:
                frame.pts = None  # the decoded samples follow one another, whatever a broken container says
                yield frame


def _frame(samples: np.ndarray, rate: int, start: int) -> av.AudioFrame:
    layout = LAYOUTS.get(samples.shape[0], f"{samples.shape[0]} channels")
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
    return frame
