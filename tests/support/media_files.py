"""Small real pictures, sounds and videos, made with the same libraries that users' files are made with."""

import contextlib
import struct
from fractions import Fraction

import av
import numpy as np
import soundfile

from wanvideo.video.reader import probe
from wanvideo.video.writer import VideoWriter


def tone(rate, seconds, channels=1, frequency=440.0, level=0.3):
    """[n, channels] float32, each channel a little higher than the one before."""
    time = np.arange(round(rate * seconds)) / rate
    waves = [level * np.sin(2 * np.pi * frequency * 1.1**channel * time) for channel in range(channels)]
    return np.stack(waves, -1).astype(np.float32)


def click(rate, seconds, at):
    """[n, 1] float32 of silence with one short burst at `at` seconds."""
    samples = np.zeros((round(rate * seconds), 1), np.float32)
    start = round(at * rate)
    samples[start : start + rate // 50] = 0.8 * np.sin(np.arange(rate // 50) * 0.8)[:, None]
    return samples


def wav(path, samples, rate, subtype="PCM_16"):
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def coded(path, codec, samples, rate):
    """A lossy sound file; its container follows from the suffix."""
    layout = "stereo" if samples.shape[1] == 2 else "mono"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), "fltp", layout)
        frame.sample_rate, frame.pts = rate, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


def numbered_frames(count, height=48, width=64):
    """uint8 [count, height, width, 3]; frame k is flat with the level `level_of(k)`."""
    levels = np.array([level_of(k) for k in range(count)], np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def level_of(index):
    return 20 + index % 45 * 5


def index_of(frame):
    """The number, below 45, that `numbered_frames` gave a frame (after lossy coding)."""
    return round((float(frame.mean()) - 20) / 5)


def video(path, frames, *, fps=25, times=None, codec="libx264", keyframe=12, **settings):
    """A video file. times: seconds of every frame, for a variable rate; settings: attributes of the stream."""
    base = Fraction(1, 90000) if times is not None else 1 / Fraction(fps)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = base
        stream.codec_context.gop_size = keyframe
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.time_base = base
            frame.pts = round(times[number] / base) if times is not None else number
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def film(path, seconds=0.5):
    """A video with sound; its container follows from the suffix."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=25)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("aac", rate=48000, layout="mono")
        frames = [av.VideoFrame.from_ndarray(levels, "rgb24") for levels in numbered_frames(round(25 * seconds))]
        samples = av.AudioFrame.from_ndarray(tone(48000, seconds).T.copy(), "fltp", "mono")
        samples.sample_rate, samples.pts = 48000, 0
        for stream, given in ((picture, frames), (sound, [samples])):
            for frame in (*given, None):
                for packet in stream.encode(frame):
                    container.mux(packet)
    return path


def turned(path, matrix):
    """Put a display matrix (a, b, c, d) into the first track header of an mp4."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    a, b, c, d = matrix
    data[start : start + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def decoded_frames(path):
    """uint8 [F, H, W, 3], every frame of a file that can be decoded, as a player shows them."""
    pictures = []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            with contextlib.suppress(av.error.InvalidDataError):
                pictures += [frame.to_ndarray(format="rgb24") for frame in packet.decode()]
    return np.stack(pictures)


def decoded_sound(path):
    """float32 [C, n] and rate, as a player hears it."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler("fltp")
        pieces = [out.to_ndarray() for frame in container.decode(stream) for out in resampler.resample(frame)]
        return np.concatenate(pieces, -1), stream.codec_context.sample_rate


def write_video(path, count=50, batch=25, fps=25, **settings):
    """Numbered frames, written as results are."""
    frames = numbered_frames(count)
    with VideoWriter(path, 64, 48, fps, **settings) as writer:
        for start in range(0, count, batch):
            writer.write(frames[start : start + batch])
    return probe(writer.path)
