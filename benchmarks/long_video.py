"""What length costs: host memory of runs of more and more windows, a whole hour planned and sampled at its ends, sync.

    python benchmarks/long_video.py windows 3 300
    python benchmarks/long_video.py minutes 1 60
    python benchmarks/long_video.py sync 60

Tiny models and pictures on the CPU: what is measured is what grows, which no size of a model changes. Each case has a
process of its own; memory is anonymous memory of that process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from wanvideo.engine.conditioning import encode_request
from wanvideo.engine.render import render
from wanvideo.geometry import WindowPlan
from wanvideo.pipeline import TalkingVideoPipeline
from wanvideo.quality.drift import WindowMeasures
from wanvideo.request import EngineOptions, LoopSettings, ModelFiles, Speaker, TalkRequest
from wanvideo.runs.manifest import Manifest, Plan
from wanvideo.runs.store import Run
from wanvideo.sampling.state import WindowState
from wanvideo.synthetic.models import SPEECH, WAN, make_models
from wanvideo.video.overlay import save_picture
from wanvideo.video.soundtrack import Soundtrack

FPS, RATE = 25, 16000
SHORT = LoopSettings(
    window_frames=13, motion_frames=5, scheduler="euler", steps=1, guidance_scale=1.0, audio_guidance_scale=1.0,
    color_match="lab",
)  # fmt: skip
LONG = LoopSettings(
    window_frames=81, motion_frames=9, scheduler="euler", steps=1, guidance_scale=1.0, audio_guidance_scale=1.0
)
SIZE = (48, 48)


class Peak:
    """The most anonymous memory of this process while the context is open."""

    def __enter__(self) -> Peak:
        self.num_bytes, self._done = 0, threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        while True:
            self.num_bytes = max(self.num_bytes, anonymous())
            if self._done.wait(0.02):
                return


def anonymous() -> int:
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def write_speech(path: Path, seconds: float) -> Path:
    """Tones whose loudness swells, written in parts."""
    import soundfile

    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        for start in range(0, round(seconds * RATE), 60 * RATE):
            at = np.arange(start, min(start + 60 * RATE, round(seconds * RATE))) / RATE
            file.write((0.3 * np.sin(at * 1400) * (0.6 + 0.4 * np.sin(at * 17))).astype(np.float32))
    return path


def opened(folder: Path, settings: LoopSettings, seconds: float) -> tuple[TalkingVideoPipeline, TalkRequest]:
    make_models(folder / "models", "tiny", "official")
    models = folder / "models"
    picture = folder / "face.png"
    save_picture(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8), picture)
    files = ModelFiles(
        str(models / WAN), str(models / "InfiniteTalk" / "single" / "infinitetalk.safetensors"),
        wav2vec=str(models / SPEECH),
    )  # fmt: skip
    request = TalkRequest(
        ("She talks.",), str(picture), (Speaker(str(write_speech(folder / "speech.wav", seconds))),), size=SIZE,
        settings=settings,
    )  # fmt: skip
    return TalkingVideoPipeline(files, EngineOptions(device="cpu", dtype="fp32")), request


def windows(folder: Path, count: int) -> None:
    """A whole run of so many windows, from request to finished video."""
    settings = SHORT
    frames = settings.window_frames + (count - 1) * (settings.window_frames - settings.motion_frames)
    pipeline, request = opened(folder, settings, frames / FPS)
    start = time.perf_counter()
    with Peak() as peak:
        pipeline.generate(request, folder / "talk.mp4")
    done = Manifest.read(folder / "talk.run").progress
    print(f"{done.num_windows} windows: {peak.num_bytes / 1e6:.1f} MB, {time.perf_counter() - start:.0f} s")


def minutes(folder: Path, count: int) -> None:
    """A sound of so many minutes planned, its features made, the first and the last window sampled."""
    pipeline, request = opened(folder, LONG, 60 * count)
    with Peak() as peak:
        started = time.perf_counter()
        inputs = pipeline.check(request)
        planned = time.perf_counter()
        conditioning = encode_request(request, inputs, pipeline.encoders)
        encoded = time.perf_counter()
        last = len(inputs.plan) - 1
        for state in (None, state_before(inputs.plan, last)):
            with closing(render(pipeline.engine, conditioning, inputs.setup, 1, (), None, state)) as rendered:
                window = next(rendered)
            assert window.index == (last if state else 0)
    print(
        f"{count} min: {inputs.num_frames} frames, {last + 1} windows, {peak.num_bytes / 1e6:.1f} MB; "
        f"planned in {planned - started:.1f} s, features in {encoded - planned:.1f} s"
    )


def state_before(plan: WindowPlan, index: int) -> WindowState | None:
    return WindowState(index, plan.start_of(index), torch.zeros(3, plan.overlap, *SIZE)) if index else None


def sync(folder: Path, count: int) -> None:
    """So many minutes through a run folder; once a minute a white frame and a click at the same moment."""
    import soundfile

    total = 60 * FPS * count
    with soundfile.SoundFile(folder / "clicks.wav", "w", 48000, 2) as file:
        for _ in range(count):
            minute = np.zeros((60 * 48000, 2), np.float32)
            minute[30 * 48000 : 30 * 48000 + 480] = 0.8
            file.write(minute)
    plan = Plan(64, 48, float(FPS), total, -(-total // 72))
    run = Run(folder / "talk.run", Manifest({}, {}, plan), Soundtrack((folder / "clicks.wav",)))
    with Peak() as peak:
        for index, start in enumerate(range(0, total, 72)):
            frames = torch.zeros(min(72, total - start), 48, 64, 3, dtype=torch.uint8)
            for frame in range(start, start + len(frames)):
                frames[frame - start] = 255 if frame % (60 * FPS) == 30 * FPS else 0
            run.write(frames)
            run.commit(b"", "", WindowMeasures(index, start, (0.0,) * 3, (0.0,) * 3, 0.0, 0.0, 1.0))
        video = run.close()
    seen, audible = list(flashes(video)), list(clicks(video))
    assert len(seen) == len(audible) == count, (len(seen), len(audible))
    most = max(abs(a - b) for a, b in zip(seen, audible, strict=True))
    print(f"{count} min: picture and sound at most {1000 * most:.2f} ms apart, last at {seen[-1]:.2f} s; "
          f"{peak.num_bytes / 1e6:.1f} MB")  # fmt: skip


def flashes(video: Path) -> Iterator[float]:
    """Seconds at which a white frame begins."""
    import av

    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            if frame.to_ndarray(format="gray8").mean() > 128:
                yield frame.time


def clicks(video: Path) -> Iterator[float]:
    """Seconds at which a click begins."""
    import av

    last = -1.0
    with av.open(str(video)) as container:
        for frame in container.decode(audio=0):
            loud = np.abs(frame.to_ndarray().astype(np.float64)).reshape(-1)
            if frame.format.is_packed:
                loud = loud.reshape(-1, frame.layout.nb_channels).max(1)
            loud = loud / (32768 if frame.format.name.startswith("s16") else 1)
            if loud.max() > 0.3:
                at = frame.time + int((loud > 0.3).argmax()) / frame.sample_rate
                if at > last + 1:
                    yield at
                last = at


CASES = {"windows": windows, "minutes": minutes, "sync": sync}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=CASES)
    parser.add_argument("counts", type=int, nargs="+")
    flags = parser.parse_args()
    if len(flags.counts) > 1:
        for count in flags.counts:
            subprocess.run([sys.executable, __file__, flags.what, str(count)], check=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        CASES[flags.what](Path(folder), flags.counts[0])


if __name__ == "__main__":
    main()
