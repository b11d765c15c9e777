import itertools

import pytest

from wanvideo import VideoGeometry, WindowPlan
from wanvideo.errors import InputError
from wanvideo.geometry import bucket_size, frames_of, parse_size, snap_frames


@pytest.mark.parametrize(
    ("frames", "windows"),
    [(1, 1), (81, 1), (82, 2), (153, 2), (154, 3), (550, 8), (750, 11), (1000, 14), (1500, 21), (7500, 105),
     (45000, 625), (90000, 1250)],
)  # fmt: skip
def test_window_counts(frames, windows):
    plan = WindowPlan(frames)
    assert plan.num_windows == len(list(plan)) == windows


@pytest.mark.parametrize(("frames", "windows"), [(550, 6), (750, 8), (1500, 17), (7500, 82), (45000, 489)])
def test_window_counts_117_25(frames, windows):
    assert WindowPlan(frames, 117, 25).num_windows == windows


@pytest.mark.parametrize("total", [1, 5, 81, 82, 153, 154, 200, 551])
@pytest.mark.parametrize(("window", "overlap"), [(81, 9), (117, 25), (13, 5)])
def test_new_frames_tile_the_video_exactly(total, window, overlap):
    plan = WindowPlan(total, window, overlap)
    covered = [frame for span in plan for frame in range(span.new_start, span.new_stop)]
    assert covered == list(range(total))
    assert plan[len(plan) - 1].stop >= total
    assert all(span.stop - span.start == window and span.new_stop <= span.stop for span in plan)


def test_a_plan_of_unknown_length_has_no_end():
    plan, known = WindowPlan(None, 13, 5), WindowPlan(10**6, 13, 5)
    assert list(itertools.islice(plan, 40)) == list(itertools.islice(known, 40))
    assert plan.num_windows is None and plan and 10**6 in plan and -1 not in plan
    with pytest.raises(TypeError, match="unknown length"):
        len(plan)


def test_a_plan_says_which_windows_there_are():
    plan = WindowPlan(29, 13, 5)
    assert [index in plan for index in (-1, 0, 2, 3)] == [False, True, True, False]
    with pytest.raises(IndexError, match="window 3 of 3"):
        plan[3]


def test_geometry_sizes():
    geometry = VideoGeometry(832, 480, 81)
    assert geometry.latent_shape == (16, 21, 60, 104)
    assert (geometry.tokens_per_frame, geometry.num_tokens) == (1560, 32760)


@pytest.mark.parametrize(
    ("args", "hint"),
    [((833, 480, 81), "832 or 848"), ((832, 481, 81), "480 or 496"), ((832, 480, 80), "77 or 81"), ((0, 480, 81), "16"),
     ((832.0, 480, 81), "whole number"), ((832, 480, 0), "1 or 5")],
)  # fmt: skip
def test_impossible_sizes_are_refused_with_a_way_out(args, hint):
    with pytest.raises(InputError, match=hint):
        VideoGeometry(*args)


@pytest.mark.parametrize(("window", "overlap"), [(81, 81), (81, 85), (80, 9), (81, 15), (81, 0)])
def test_impossible_plans_are_refused(window, overlap):
    with pytest.raises(InputError):
        WindowPlan(100, window, overlap)


def test_snapping_and_duration():
    assert [snap_frames(n) for n in (0, 1, 4, 5, 15, 80, 81)] == [1, 1, 1, 5, 13, 77, 81]
    assert [frames_of(s) for s in (0.0, 0.1, 1.0, 30.0, 30.02)] == [1, 2, 25, 750, 750]


@pytest.mark.parametrize(
    ("table", "size", "expected"),
    [("infinitetalk-480", (1920, 1080), (832, 480)), ("infinitetalk-480", (1080, 1920), (480, 832)),
     ("infinitetalk-480", (500, 500), (640, 640)), ("infinitetalk-480", (3000, 800), (1216, 320)),
     ("infinitetalk-720", (1920, 1080), (1280, 704)), ("infinitetalk-720", (700, 700), (960, 960))],
)  # fmt: skip
def test_buckets(table, size, expected):
    assert bucket_size(table, *size) == expected


def test_parse_size():
    assert parse_size("832x480") == (832, 480)
    assert parse_size("multitalk-720") == "infinitetalk-720"
    for bad in ("832", "833x480", "big"):
        with pytest.raises(InputError):
            parse_size(bad)
