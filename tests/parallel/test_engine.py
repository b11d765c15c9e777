"""Whole requests on several ranks: the frames of one, whatever holds the weights; and who says what is wrong."""

from dataclasses import replace

import pytest
import torch
from support import jobs
from support.ranks import run_ranks

from wanvideo import TalkingVideoPipeline
from wanvideo.errors import CheckpointError, OutputError, TalkError
from wanvideo.parallel.layout import Layout
from wanvideo.parallel.team import Team
from wanvideo.request import EngineOptions, LoraFile

GUIDED = {"guidance_scale": 3.0}


@pytest.fixture
def folder(tmp_path):
    """A picture and two sounds, written once: ranks only read them."""
    jobs.picture(tmp_path)
    for number in range(2):
        jobs.speech(tmp_path, 0.8, f"{number}.wav", frequency=200.0 + 90 * number)
    return tmp_path


def talk(folder, num_speakers, **settings):
    return jobs.request(
        folder, [str(folder / f"{number}.wav") for number in range(num_speakers)],
        reference=str(folder / "face.png"), settings=replace(jobs.SETTINGS, **settings),
    )  # fmt: skip


def frames(mesh, folder, settings, options, shard, loras=0):
    files = jobs.official_files("multi", loras=(LoraFile(jobs.lora_file(), 0.5),) * loras)
    pipeline = TalkingVideoPipeline(files, EngineOptions(device="cpu", dtype="fp32", **options))
    if mesh is not None:
        pipeline.engine.join(Team(mesh), shard)
    return torch.cat([window.frames for window in pipeline.run(talk(folder, 2, **settings))])


@pytest.mark.parametrize(
    ("layout", "settings", "options", "shard", "loras"),
    [
        (Layout(ulysses=2), {}, {}, True, 1), (Layout(cfg=2), GUIDED, {"quantize": "fp8"}, False, 0),
        (Layout(ulysses=2, ring=2), {}, {"quantize": "int8"}, True, 1),
        (Layout(ring=2), {"reanchor": 1}, {"blocks_to_stream": 1}, False, 0),
        (Layout(ring=2), {}, {"blocks_to_stream": 1}, True, 0),
    ],
)  # fmt: skip
def test_frames_are_those_of_one_rank(folder, layout, settings, options, shard, loras):
    expected = frames(None, folder, settings, options, False, loras)
    for result in run_ranks(layout, frames, folder, settings, options, shard, loras):
        difference = (result.int() - expected.int()).abs()
        assert result.shape == expected.shape and difference.max() <= 1 and difference.float().mean() <= 0.01


def problem(mesh, folder):
    """What every rank says where the first one finds no text encoder in its files when it encodes."""
    pipeline = TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS)
    pipeline.engine.join(Team(mesh), False)
    request = talk(folder, 1)
    if mesh.rank == 0:
        object.__setattr__(pipeline.encoders, "tokenizer", None)
        pipeline.encoders.__class__.check = lambda self, has_audio: None
    try:
        list(pipeline.run(request))
    except TalkError as error:
        return type(error).__name__, str(error)


def test_what_fails_on_the_first_rank_is_said_by_all(folder):
    (kind, said), *others = run_ranks(Layout(ring=2), problem, folder)
    assert kind == CheckpointError.__name__ and "prompt" in said
    assert others == [("PeerStopped", f"Rank 0 ended the job: CheckpointError: {said}")]


class FullDisk:
    """A sink that takes so many windows."""

    def __init__(self, room):
        self.room, self.ends = room, []

    def write(self, frames):
        if self.room == 0:
            raise OutputError("The disk is full. Make room.")
        self.room -= 1

    def close(self):
        self.ends.append("closed")

    def abandon(self):
        self.ends.append("abandoned")


def full(mesh, folder):
    """What each rank says of a video of two windows, where the first one's disk takes 0, 1, 2."""
    pipeline, team, found = TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS), Team(mesh), []
    pipeline.engine.join(team, False)
    for room in range(3):
        team.begin()
        disk, said = FullDisk(room), ""
        try:
            for _ in pipeline.run(talk(folder, 1), sinks=[] if mesh.rank else [disk]):
                pass
        except TalkError as error:
            said = f"{type(error).__name__} {error}"
        found.append((disk.ends, said))
    return found


def test_a_full_disk_of_the_first_rank_ends_the_others_in_every_window(folder):
    """While they ask for the sound of the next one, and behind the last one."""
    jobs.official()
    first, second = run_ranks(Layout(ulysses=2), full, folder)
    said = "OutputError The disk is full. Make room."
    assert first == [(["abandoned"], said), (["abandoned"], said), (["closed"], "")]
    assert [said for _, said in second] == [
        "PeerStopped Rank 0 ended the job: OutputError: The disk is full. Make room."
    ] * 2 + [""]
