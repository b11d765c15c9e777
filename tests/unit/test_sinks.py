"""A sink that is not the library's own."""

import numpy as np
import torch
from PIL import Image
from support import jobs

from wanvideo import TalkingVideoPipeline


class PictureFolder:
    """A sink of one's own."""

    def __init__(self, folder):
        self.folder, self.count, self.end = folder, 0, None

    def write(self, frames):
        for frame in frames:
            Image.fromarray(frame.numpy()).save(self.folder / f"{self.count:05}.png")
            self.count += 1

    def close(self):
        self.end = "closed"

    def abandon(self):
        self.end = "abandoned"


def test_any_sink_gets_the_frames_and_is_told_how_it_ended(tmp_path):
    pipeline = TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS)
    request = jobs.request(tmp_path)
    whole, early = (PictureFolder(tmp_path / name) for name in ("whole", "early"))
    for sink in (whole, early):
        sink.folder.mkdir()
    frames = torch.cat([window.frames for window in pipeline.run(request, sinks=[whole])])
    kept = [np.asarray(Image.open(path)) for path in sorted(whole.folder.iterdir())]
    assert whole.end == "closed" and np.array_equal(np.stack(kept), frames.numpy())
    windows = pipeline.run(request, sinks=[early])
    first = next(windows)
    windows.close()
    assert early.end == "abandoned" and early.count == len(first.frames)
