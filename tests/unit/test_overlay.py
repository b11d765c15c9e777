"""Pictures of who speaks where and when, and regions from points and from left to right."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.pack import node

from wanvideo.errors import InputError, OutputError
from wanvideo.geometry import WindowPlan
from wanvideo.video.overlay import BORDER, COLORS, coverage, draw_speakers, grid, save_picture, voice_of
from wanvideo.video.regions import left_to_right, point_regions, stack_masks

RATE = 16000


def halves(width=640, height=320):
    return stack_masks(left_to_right(2, width, height), width, height)


def tone(seconds, quiet=0.0):
    """`quiet` seconds of silence and then a tone."""
    samples = 0.3 * torch.sin(torch.arange(round(seconds * RATE)) * 0.2)
    samples[: round(quiet * RATE)] = 0
    return samples


def has(drawn, color):
    return (np.abs(drawn.astype(int) - color).max(-1) <= 2).any()


def test_each_speaker_is_where_its_mask_is_and_speaks_when_its_track_does():
    drawn = draw_speakers(torch.zeros(3, 320, 640), halves(), [tone(4), tone(4, quiet=2)], WindowPlan(100), 25.0)
    assert drawn.dtype == np.uint8 and drawn.shape[1] == 640 and drawn.shape[0] > 320
    left, right = drawn[:320, :320], drawn[:320, 320:]
    assert has(left, COLORS[0]) and not has(left, COLORS[1])
    assert has(right, COLORS[1]) and not has(right, COLORS[0])
    second = drawn[320 + 72 : 320 + 144]
    assert not has(second[:, 90:300], COLORS[1]) and has(second[:, 400:], COLORS[1])
    assert has(drawn[320:], BORDER)
    swapped = draw_speakers(torch.zeros(3, 320, 640), halves()[[1, 0, 2]], None, WindowPlan(100), 25.0)
    assert has(swapped[:, 320:], COLORS[0]) and swapped.shape[0] == 320


def test_one_window_has_no_border_and_a_small_picture_is_enlarged():
    drawn = draw_speakers(torch.zeros(3, 64, 96), None, [tone(1)], WindowPlan(25), 25.0)
    assert drawn.shape[1] >= 640 and not has(drawn[448:], BORDER)


def test_a_long_track_is_read_in_parts():
    class Track:
        largest = 0

        def __len__(self):
            return 3600 * RATE

        def __getitem__(self, span):
            self.largest = max(self.largest, span.stop - span.start)
            return torch.full((span.stop - span.start,), 0.5 if span.start >= 1800 * RATE else 0.0)

    track = Track()
    voice = voice_of(track, 100)
    assert track.largest <= 2**20
    assert voice.is_voiced.tolist() == [False] * 50 + [True] * 50 and voice.peaks.max() == 0.5


def test_coverage_is_in_percent():
    mask = np.zeros((10, 10), bool)
    mask[:5, :5] = True
    assert coverage(mask) == 25.0


def test_pictures_are_joined_by_their_shape():
    assert grid([Image.new("RGB", (20, 10))] * 4).size == (40, 20)
    assert grid([Image.new("RGB", (10, 20))] * 4).size == (40, 20)
    assert grid([Image.new("RGB", (20, 10))]).size == (20, 10)


def test_a_picture_that_cannot_be_written_is_said(tmp_path):
    drawn = np.zeros((4, 4, 3), np.uint8)
    assert Image.open(save_picture(drawn, tmp_path / "a.png")).size == (4, 4)
    with pytest.raises(OutputError, match="Name a file that can be written"):
        save_picture(drawn, tmp_path / "none" / "a.png")


def test_points_get_regions_that_do_not_touch():
    first, second = point_regions([(100, 100), (100, 200)], 400, 300)
    assert first[100, 100] and second[100, 200] and not (first & second).any()
    with pytest.raises(InputError, match="outside the picture of 300 rows"):
        point_regions([(300, 5)], 400, 300)
    with pytest.raises(InputError, match="5 pixels apart"):
        point_regions([(100, 100), (104, 103)], 400, 300)


def test_three_are_placed_from_left_to_right():
    regions = left_to_right(3, 600, 100)
    assert [int(np.nonzero(region)[1].mean() // 200) for region in regions] == [0, 1, 2]
    assert not (regions[0] & regions[1]).any()


def test_a_picture_with_fewer_columns_than_people_has_no_place_for_them():
    with pytest.raises(InputError, match="region of speaker 1 is empty"):
        stack_masks(left_to_right(3, 2, 100), 64, 96)


def sound(seconds):
    return {"waveform": tone(seconds)[None, None], "sample_rate": RATE}


SMALL = {"width": 96, "height": 64, "frame_window_size": 13, "motion_frame": 5}


def speakers(monkeypatch, tmp_path, **inputs):
    monkeypatch.chdir(tmp_path)
    picture = torch.rand(1, 128, 192, 3, generator=torch.Generator().manual_seed(0))
    return node("WanVideoSpeakers").process(picture, **(SMALL | inputs))


def test_the_node_gives_the_masks_that_it_draws(monkeypatch, tmp_path):
    given = {"audio_1": sound(1), "audio_2": sound(0.6)}
    answer = speakers(monkeypatch, tmp_path, **given)
    preview, masks = answer["result"]
    (file,) = answer["ui"]["images"]
    assert (tmp_path / "temp" / file["filename"]).is_file() and file["type"] == "temp"
    assert preview.shape[-1] == 3 and 0 <= preview.min() and preview.max() <= 1
    assert masks.shape == (2, 128, 192) and masks[0, :, :96].any() and not masks[0, :, 96:].any()
    swapped = speakers(monkeypatch, tmp_path, order="2, 1", **given)["result"][1]
    assert torch.equal(swapped, masks.flip(0))
    boxes = speakers(monkeypatch, tmp_path, regions="10, 0, 90, 80\n10 100 90 190", **given)["result"][1]
    assert boxes[1, 50, 150] and not boxes[1, 50, 50]
    painted = speakers(monkeypatch, tmp_path, masks=boxes, **given)["result"][1]
    assert torch.equal(painted, boxes)


@pytest.mark.parametrize("values, said", [
    ({"regions": "1, 2, 3"}, "regions '1, 2, 3' are not usable"),
    ({"regions": "1, 2\n1, 2, 3, 4"}, "are not usable"),
    ({"regions": "1, 2", "masks": None}, "Use one of both"),
    ({"order": "2, 2"}, "order '2, 2' is not usable"),
    ({"order": "x"}, "order 'x' is not usable"),
    ({"width": 100}, "width 100 is not usable"),
    ({"frame_window_size": 13, "motion_frame": 13}, "must be smaller"),
])  # fmt: skip
def test_a_wrong_value_is_told_when_the_graph_is_queued(values, said):
    check = type(node("WanVideoSpeakers")).VALIDATE_INPUTS
    assert check(**SMALL) is True
    assert said in check(**(SMALL | values))


def test_regions_that_do_not_fit_the_voices_are_refused(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="2 voices have 1 regions"):
        speakers(monkeypatch, tmp_path, regions="50, 50", audio_1=sound(1), audio_2=sound(1))
    with pytest.raises(ValueError, match="names 2 of 3 regions"):
        masks = torch.zeros(3, 128, 192)
        speakers(monkeypatch, tmp_path, masks=masks, order="2, 1")
    with pytest.raises(ValueError, match="overlap by 100%"):
        speakers(monkeypatch, tmp_path, regions="10, 10, 90, 90\n10, 10, 90, 90")
