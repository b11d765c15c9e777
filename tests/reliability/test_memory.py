"""A run folder costs the same memory whatever the video's length."""

from support import host_memory

CODE = """
import sys
import numpy as np, torch
from support import host_memory, media_files
from wanvideo.quality.drift import WindowMeasures
from wanvideo.runs.manifest import Manifest, Plan
from wanvideo.runs.store import Run
from wanvideo.video.soundtrack import Soundtrack

windows = int(sys.argv[1])
frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 96, 160, 3), np.uint8))
path = media_files.wav(sys.argv[2] + "/a.wav", media_files.tone(16000, 8 * windows / 25), 16000)
run = Run(sys.argv[2] + "/a.run", Manifest({}, {}, Plan(160, 96, 25.0, 8 * windows, windows)), Soundtrack((path,)))
peak = 0
for index in range(windows):
    run.write(frames)
    run.commit(bytes(2**20), "", WindowMeasures(index, 8 * index, (1.0, 2.0, 3.0), (1.0, 2.0, 3.0), 4.0, 5.0, 6.0))
    peak = max(peak, host_memory.anonymous())
run.close()
print(max(peak, host_memory.anonymous()))
"""


@host_memory.NEEDS_PROC
def test_300_windows_take_the_memory_of_3(tmp_path):
    peaks = []
    for windows in (3, 300):
        folder = tmp_path / str(windows)
        folder.mkdir()
        peaks += host_memory.run(CODE, windows, folder)
        left = sorted(path.name for path in (folder / "a.run").iterdir())
        assert left == ["drift.jsonl", "drift.png", "manifest.json", "video.mp4"]
    assert peaks[1] < 1.05 * peaks[0], peaks
