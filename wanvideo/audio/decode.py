"""Sound files to samples: the one reader of the audio encoder's input and of the soundtrack.

A header is a hint and the data decide: sound is read to its end, whatever length was stated.
Legend: C channels, n samples.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..untrusted import answered
from .container import MAX_DURATION_S, open_container, sound_stream
from .wav_header import WavTail, read_wav_header

if TYPE_CHECKING:
    import av

    SoundPacket = av.Packet[av.AudioStream]

RATES = (4_000, 768_000)  # Hz
MAX_CHANNELS = 8
LOUDEST = 100.0  # times full scale (+40 dB): beyond it the scale is wrong, and the coder of the soundtrack fails
GAP_S, MAX_GAP_S = 0.05, 600.0  # a jump of a track's time from..to so much is sound that is missing
MAX_PACKET_S = 5.0  # damaged packets that claim more are not believed
EARLY_S, EARLY = 0.25, 0.01  # sound may end this much, or this part, before the time that its header gives
ESTIMATED = ("aac", "ac3", "amr", "dts", "eac3", "mpeg", "mpegts")  # whose length FFmpeg guesses
XING_BYTES = 2**18  # of an mp3 in which a header with its length may stand, behind a picture

logger = logging.getLogger("wanvideo")


def check_format(rate: int, channels: int, name: str) -> None:
    """Raises: InputError for a rate or a number of channels that the soundtrack could not hold."""
    if not RATES[0] <= rate <= RATES[1]:
        raise InputError(
            f"The sound of {name} has {rate} samples a second. From {RATES[0]} to {RATES[1]} are read: "
            "export it at 44100 or 48000."
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise InputError(
            f"The sound of {name} has {channels} channels. From 1 to {MAX_CHANNELS} are read: "
            "export it in mono or stereo."
        )


def check_values(samples: np.ndarray, name: str) -> None:
    """Raises: InputError for samples that are no numbers, or far beyond full scale (1)."""
    if not np.isfinite(samples).all():
        raise InputError(f"{name} has values that are no numbers (NaN or infinite). Decode or export it again.")
    peak = float(np.abs(samples).max(initial=0.0))
    if peak > LOUDEST:
        raise InputError(
            f"{name} has values up to {peak:.3g}, where full scale is 1; up to {LOUDEST:.0f} are used. "
            "Export it again, normalized, or as 16 bit."
        )


class SoundFile:
    """The sound of a sound or video file.

    Attributes:
        rate: Hz. channels: C. layout: FFmpeg's name for the places of the channels, None where the file says nothing
        usable.
    Raises: InputError when the file is missing, holds no sound that can be decoded, or sound of a form that is not
        read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._said: set[str] = set()
        with answered(str(path)), closing(open_container(path, "a sound file")) as container:
            context = sound_stream(container, path).codec_context
            self.rate, self.channels = context.sample_rate, context.channels
            check_format(self.rate, self.channels, str(path))
            name = context.layout.name
            self.layout = None if "channels" in name or name.startswith("ambisonic") else name

    def pieces(self) -> Iterator[np.ndarray]:
        """Samples float32 [n, C], full scale 1, from the first to the last that can be decoded.

        A damaged packet and a jump of the track's time are silence of their length, and are said once for the object.
        Raises: InputError when nothing can be decoded, or the sound is longer than a day.
        """
        with answered(str(self.path)), closing(open_container(self.path, "a sound file")) as container:
            stream = sound_stream(container, self.path)
            track, total = _Track(stream, self.rate, self.channels), 0
            for piece in track.pieces(container):
                total += len(piece)
                if total > MAX_DURATION_S * self.rate:
                    raise InputError(
                        f"The sound of {self.path} lasts more than {MAX_DURATION_S / 3600:.0f} hours, "
                        "which is too much. Cut it into parts."
                    )
                yield piece
            if total:
                self._report(track, total / self.rate, _stated_s(stream, container, self.path))
        if not total:
            raise InputError(
                f"{self.path} holds a sound track that is empty: no samples of it can be decoded. It may be cut off."
            )

    def _report(self, track: _Track, length_s: float, stated_s: float) -> None:
        if track.damaged:
            self._say(
                f"{self.path} is damaged: packets of its sound cannot be decoded ({track.damaged}, the first at "
                f"{track.damaged_s:.2f} s). Silence stands in their place, {track.silent / self.rate:.2f} s in all."
            )
        elif track.silent:
            self._say(f"The sound of {self.path} has gaps; {track.silent / self.rate:.2f} s of silence fill them.")
        if stated_s - length_s > max(EARLY_S, EARLY * stated_s):
            self._say(f"{self.path} ends after {length_s:.2f} s; its header says {stated_s:.2f} s. It may be cut off.")
        if read_wav_header(self.path).tail is WavTail.RECORDING:
            self._say(f"{self.path} holds a second recording behind its first, which is not used. Save it as one.")

    def _say(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            logger.warning("%s", sentence)


class _Track:
    """A track while it is decoded, and what was found wrong with it.

    Attributes: damaged: packets that cannot be decoded. damaged_s: time of the first. silent: samples put in for them.
    """

    def __init__(self, stream: av.AudioStream, rate: int, channels: int) -> None:
        self._stream, self._rate, self._channels = stream, rate, channels
        self._layout = stream.layout  # before the first frame: a decoder changes it with the sound
        self._seconds = 0.0  # from the first sample on
        self._next_s: float | None = None  # the track's own time of the next sample
        self._converter: tuple[tuple[int, str, str], av.AudioResampler] | None = None
        self._held = 0  # samples of silence
        self.damaged, self.damaged_s, self.silent = 0, 0.0, 0

    def pieces(self, container: av.container.InputContainer) -> Iterator[np.ndarray]:
        """[n, C] of the track; nothing at all where not one sample of it can be decoded."""
        has_samples = False
        for packet, frames in self._packets(container):
            if frames is None:
                self.damaged_s = self.damaged_s if self.damaged else self._seconds
                self.damaged += 1
                length_s = self._length_s(packet)
                self._next_s = None if self._next_s is None else self._next_s + length_s
                self._put_silence(length_s)
                continue
            for frame in frames:
                self._put_silence(self._missing_s(frame))
                yield from self._held_silence()
                yield from self._samples(frame)
                self._seconds += frame.samples / frame.sample_rate
                has_samples = True
        yield from self._remainder()
        yield from self._held_silence() if has_samples else ()

    def _packets(
        self, container: av.container.InputContainer
    ) -> Iterator[tuple[SoundPacket, list[av.AudioFrame] | None]]:
        """Packets and what each gives; None: it cannot be decoded."""
        import av

        packets = container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:  # the file is damaged from here on
                packet = None
            if packet is None:
                return
            try:
                yield packet, packet.decode()
            except av.FFmpegError:
                if packet.size:
                    yield packet, None

    def _missing_s(self, frame: av.AudioFrame) -> float:
        """Seconds between the end of the sound so far and a frame, by the track's own times."""
        if frame.pts is None or not frame.time_base:
            return 0.0
        time_s = float(frame.pts * frame.time_base)
        missing_s = 0.0 if self._next_s is None else time_s - self._next_s
        self._next_s = time_s + frame.samples / frame.sample_rate
        return missing_s if GAP_S < missing_s < MAX_GAP_S else 0.0

    def _length_s(self, packet: SoundPacket) -> float:
        length_s = float((packet.duration or 0) * (packet.time_base or 0))
        return length_s if 0 < length_s < MAX_PACKET_S else (self._stream.codec_context.frame_size or 0) / self._rate

    def _put_silence(self, seconds: float) -> None:
        """Silence that is due before the next samples."""
        self._held += round(seconds * self._rate)
        self._seconds += seconds

    def _held_silence(self) -> Iterator[np.ndarray]:
        self.silent += self._held
        while self._held:
            count = min(self._held, self._rate)
            self._held -= count
            yield np.zeros((count, self._channels), np.float32)

    def _samples(self, frame: av.AudioFrame) -> list[np.ndarray]:
        """[n, C] of a frame at the track's rate; sound that changes its form is brought to that of the beginning."""
        form = (frame.sample_rate, frame.layout.name, frame.format.name)
        channels = frame.layout.nb_channels
        is_plain = form[0] == self._rate and channels == self._channels
        if is_plain and (channels < MAX_CHANNELS or frame.format.is_packed):
            return [*self._remainder(), _as_float(frame.to_ndarray(), channels, frame.format.is_packed)]
        import av

        made = []
        if self._converter is None or self._converter[0] != form:
            made = self._remainder()
            layout = frame.layout if channels == self._channels else self._layout
            self._converter = form, av.AudioResampler("flt", layout, self._rate)
        frame.pts = None
        return made + [_as_float(out.to_ndarray(), self._channels, True) for out in self._converter[1].resample(frame)]

    def _remainder(self) -> list[np.ndarray]:
        """What a converter still holds when it is no longer needed."""
        if self._converter is None:
            return []
        converter, self._converter = self._converter[1], None
        return [_as_float(out.to_ndarray(), self._channels, True) for out in converter.resample(None)]


def _as_float(samples: np.ndarray, channels: int, is_packed: bool) -> np.ndarray:
    """float32 [n, C] of a frame's samples; whole numbers exactly as libsndfile scales them."""
    samples = samples.reshape(-1, channels) if is_packed else np.ascontiguousarray(samples.T)
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused as such
            return samples.astype(np.float32, copy=False)
    scale = np.float32(2.0 ** (1 - 8 * samples.dtype.itemsize))
    if samples.dtype.kind == "u":
        samples = samples.astype(np.int16) - 128
    scaled: np.ndarray = samples.astype(np.float32) * scale
    return scaled


def _stated_s(stream: av.AudioStream, container: av.container.InputContainer, path: Path) -> float:
    """The length that a file's header states; 0 where it states none."""
    kind = container.format.name.split(",")[0]
    if kind == "wav":
        return read_wav_header(path).stated_s
    if kind in ESTIMATED or not stream.duration or not stream.time_base:
        return 0.0
    if kind == "mp3":
        with path.open("rb") as file:
            head = file.read(XING_BYTES)
        if b"Xing" not in head and b"Info" not in head:
            return 0.0
    return float(stream.duration * stream.time_base)
