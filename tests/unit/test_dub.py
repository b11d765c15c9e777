"""Dubbing: outside of a region a source video stays as it is, to the bit until it is encoded."""

import math
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from support import media_files as media
from support import sources
from support.sampling import SETTINGS, conditioning

from wanvideo import VideoGeometry, WindowPlan, run_windows
from wanvideo.errors import InputError, UnsupportedError
from wanvideo.keep import Keep
from wanvideo.protocols import KeptFrames
from wanvideo.sampling.codec import VideoCodec
from wanvideo.sampling.conditions import InfiniteTalk
from wanvideo.sampling.dub import Dub, KeptLatents, latent_freedom, match_inside
from wanvideo.sampling.loop import finished
from wanvideo.sampling.state import WindowState
from wanvideo.video.composite import composite
from wanvideo.video.feather import feathered
from wanvideo.video.mask import DubSource, open_region, region_of
from wanvideo.video.source import SourceVideo, from_bytes
from wanvideo.video.writer import VideoWriter

PLAN = WindowPlan(17, 9, 5)


def moving(num_frames, height=32, width=48, step=1):
    """A background that moves: smooth waves, each frame's a little to the right of the last."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin((columns - step * k) / 12) * 50 + np.cos(rows / 12) * 40 + 120 for k in range(num_frames)]
    return np.stack([np.stack([wave, wave * 0.8, 230 - wave], -1) for wave in waves]).astype(np.uint8)


@dataclass
class Clip:
    """A source in memory: frames [n, H, W, 3], of which the last remains, and one region [H, W]."""

    pictures: torch.Tensor
    weights: torch.Tensor

    def frames(self, start, stop):
        return self.pictures[torch.arange(start, stop).clamp_max(len(self.pictures) - 1)]

    def region(self, start, stop):
        return self.weights.expand(stop - start, -1, -1)


@pytest.fixture
def clip():
    mask = torch.zeros(32, 48, dtype=torch.bool)
    mask[12:22, 16:30] = True
    return Clip(torch.from_numpy(moving(17)), feathered(mask, 4))


def video_of(windows):
    return torch.cat([finished(window, window.plan) for window in windows])


# What comes out


@pytest.mark.parametrize("mode", ["infinitetalk", "multitalk"])
@pytest.mark.parametrize("color_match", ["disabled", "lab", "hm"])
def test_outside_of_the_region_the_source_stays_to_the_bit(models, clip, mode, color_match):
    settings = replace(SETTINGS, mode=mode, color_match=color_match)
    video = video_of(run_windows(*models, conditioning(source=clip), settings, 7))
    assert video.shape == clip.pictures.shape
    outside = clip.weights == 0
    assert torch.equal(video[:, outside], clip.pictures[:, outside])
    assert not torch.equal(video[:, ~outside], clip.pictures[:, ~outside])


@pytest.mark.parametrize(("crf", "decibels"), [(0, math.inf), (4, 45)])
def test_it_stays_so_once_it_is_encoded(models, clip, tmp_path, crf, decibels):
    """Without loss the two files show the same; at a coarser setting x264 itself decides how alike they are."""
    video = video_of(run_windows(*models, conditioning(source=clip), SETTINGS, 7))
    decoded = []
    for name, frames in (("dub", video), ("source", clip.pictures)):
        with VideoWriter(tmp_path / f"{name}.mp4", 48, 32, 25, crf=crf) as writer:
            writer.write(frames)
        decoded.append(media.decoded_frames(writer.path).astype(np.float64))
    assert len(decoded[0]) == len(decoded[1]) == 17
    far = feathered(clip.weights > 0, 4).numpy() == 0  # colors are coded by 2 x 2 pixels and interpolated
    error = np.mean((decoded[0] - decoded[1])[:, far] ** 2)
    assert (math.inf if error == 0 else 10 * np.log10(255**2 / error)) >= decibels


@pytest.mark.parametrize("make", sources.KINDS)
def test_every_frame_is_there_at_its_time(models, tmp_path, make):
    path, times = make(tmp_path)
    source = SourceVideo(path, 48, 32, 25)
    given = conditioning(source=DubSource(source, open_region(Keep(box=(8, 8, 24, 24), feather=2), source)))
    video = video_of(run_windows(*models, given, replace(SETTINGS, steps=1), 7))
    assert [media.index_of(frame[-8:].numpy()) for frame in video] == sources.on_screen(times, 17)


def test_latents_outside_are_the_source_s_at_the_end(models, clip):
    clip.weights = torch.zeros(32, 48)
    clip.weights[:8, :8] = 1
    (window, *_), codec = run_windows(*models, conditioning(source=clip), SETTINGS, 7), VideoCodec(models[1])
    source = codec.encode(from_bytes(clip.frames(0, 9)).permute(3, 0, 1, 2))
    is_kept = latent_freedom(clip.region(0, 9))[1:] == 0  # the first latent is the reference picture's
    assert is_kept.any() and torch.equal(window.latents[:, 1:][:, is_kept], source[:, 1:][:, is_kept])
    assert not torch.equal(window.latents[:, 1:][:, ~is_kept], source[:, 1:][:, ~is_kept])


def test_a_dub_goes_on_from_a_state_to_the_bit(models, clip):
    given = conditioning(source=clip)
    whole = list(run_windows(*models, given, SETTINGS, 7))
    for earlier in whole[:-1]:
        state = WindowState.from_bytes(earlier.state.to_bytes())
        rest = list(run_windows(*models, given, SETTINGS, 7, state=state))
        assert [window.index for window in rest] == [window.index for window in whole[earlier.index + 1 :]]
        for window, expected in zip(rest, whole[earlier.index + 1 :], strict=True):
            assert torch.equal(window.latents, expected.latents) and torch.equal(window.pixels, expected.pixels)


def test_a_region_that_is_everything_leaves_what_the_mode_makes(models, clip):
    clip.weights = torch.ones(32, 48)
    dubbed, usual = (list(run_windows(*models, given, SETTINGS, 7)) for given in (
        conditioning(source=clip), conditioning()))  # fmt: skip
    assert torch.equal(dubbed[0].latents, usual[0].latents)


# What is known of a window


def test_the_mode_keeps_its_own_channels_and_motion_latents(models, clip):
    codec, pictures = VideoCodec(models[1]), conditioning(pictures=2).references
    inner = InfiniteTalk(pictures, codec, VideoGeometry(48, 32, 9), 5)
    dub, last_frames = Dub(inner, clip, codec, PLAN), torch.linspace(-1, 1, 3 * 5 * 32 * 48).view(3, 5, 32, 48)
    channels, known = dub.known(1, last_frames)
    expected, motion = inner.known(1, last_frames)
    assert torch.equal(channels, expected) and torch.equal(known.motion.latents, motion.latents)
    assert torch.equal(known.source, codec.encode(from_bytes(clip.frames(4, 13)).permute(3, 0, 1, 2)))
    assert dub.reference_index(5) == 1 and torch.equal(dub.color_reference(1), pictures[1])
    held = known.hold(torch.zeros(16, 3, 4, 6), 500.0, lambda shape: torch.zeros(shape))
    assert torch.equal(held[:, :2], motion.latents), "motion latents are clean, also where the source is kept"
    assert torch.equal(held[:, 2, 0, 0], known.source[:, 2, 0, 0] / 2)


def test_a_place_is_let_go_at_its_own_level_of_noise():
    freedom = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 3)
    known = KeptLatents(torch.full((16, 1, 1, 3), 4.0), freedom, None)

    def held(timestep):
        return known.hold(torch.zeros(16, 1, 1, 3), timestep, lambda shape: torch.full(shape, 2.0))[0, 0, 0].tolist()

    assert held(1000.0) == [2.0, 2.0, 0.0]
    assert held(600.0) == pytest.approx([2.8, 2.8, 0.0])
    assert held(500.0) == [3.0, 0.0, 0.0]
    assert held(0.0) == [4.0, 0.0, 0.0]


def test_a_latent_is_as_free_as_the_freest_pixel_it_stands_for():
    region = torch.zeros(9, 32, 48)
    region[4, 17, 25] = 1
    region[5, 0, 0] = 0.5
    freedom = latent_freedom(region)
    assert freedom.shape == (3, 4, 6)
    assert not freedom[0].any() and freedom[1, 2, 3] == 1 and freedom[2, 0, 0] == 0.5
    assert 0 < freedom[1, 1, 2] < 1 and freedom[1, 0, 0] == 0, "softened around it"


def test_beyond_a_cut_the_last_frame_of_the_scene_remains(models, clip):
    dub = Dub(InfiniteTalk(conditioning().references, VideoCodec(models[1]), VideoGeometry(48, 32, 9), 5), clip,
              VideoCodec(models[1]), WindowPlan(17, 9, 5, cuts=(6,)))  # fmt: skip
    frames = dub.kept(0).frames
    assert torch.equal(frames[:6], clip.pictures[:6]) and all(torch.equal(f, clip.pictures[5]) for f in frames[6:])
    assert torch.equal(dub.kept(1).frames, clip.pictures[6:15])


# Pixels


def test_the_edge_fades_and_outside_is_exact():
    source = torch.from_numpy(moving(2))
    region = torch.zeros(2, 32, 48)
    region[:, 8:16], region[:, 16:24] = 1.0, 0.5
    made = torch.full((2, 32, 48, 3), 0.25)
    out = composite(made.clone(), KeptFrames(source, region))
    assert torch.equal(out[:, 8:16], made[:, 8:16]) and torch.equal(out[:, 24:], from_bytes(source)[:, 24:])
    assert torch.allclose(out[:, 16:24], (made + from_bytes(source))[:, 16:24] / 2, atol=1e-6)
    made[:, :8] = float("nan")
    assert composite(made, KeptFrames(source, region))[:, :8].isfinite().all()


def test_colors_are_matched_to_the_source_in_the_same_place():
    source = torch.from_numpy(moving(4))
    region = torch.zeros(4, 32, 48)
    region[:, 8:24, 8:40] = 1
    made = from_bytes(source) * 0.5 - 0.3
    outside = made[:, :8].clone()
    matched = match_inside(made, KeptFrames(source, region), "mkl", 1.0)
    assert torch.equal(matched[:, :8], outside)
    inside, wanted = matched[:, 8:24, 8:40].flatten(0, 2), from_bytes(source)[:, 8:24, 8:40].flatten(0, 2)
    assert torch.allclose(inside.mean(0), wanted.mean(0), atol=0.02)
    assert torch.allclose(inside.std(0), wanted.std(0), atol=0.02)


def test_feathers_fall_to_nothing():
    mask = torch.zeros(9, 40, dtype=torch.bool)
    mask[:, 10:20] = True
    row = feathered(mask, 6)[4]
    assert row[10:20].eq(1).all() and not row[:4].any() and not row[26:].any()
    assert (row[20:26].diff() < 0).all() and row[25] > 0
    assert torch.equal(feathered(mask, 0), mask.float())


# Masks


@pytest.fixture
def source(tmp_path):
    return SourceVideo(media.video(tmp_path / "source.mp4", moving(20)), 48, 32, 25)


def test_a_box_a_painted_mask_and_masks_from_memory_are_one(source, tmp_path):
    mask = np.zeros((32, 48), np.uint8)
    mask[8:20, 10:30] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    box = open_region(Keep(box=(8, 10, 20, 30), feather=3), source).weights(0, 1)
    painted = open_region(Keep(mask=str(tmp_path / "mask.png"), feather=3), source).weights(2, 4)
    tensor = region_of(torch.from_numpy(mask / 255.0)[None], source, 3).weights(0, 4)
    assert painted.shape == (2, 32, 48) and tensor.shape == (4, 32, 48)
    assert torch.equal(box[0], painted[1]) and torch.equal(box[0], tensor[3])


def wandering(num_frames):
    masks = np.zeros((num_frames, 32, 48, 3), np.uint8)
    for index in range(num_frames):
        masks[index, 8:24, index : index + 16] = 255
    return masks


def test_a_video_of_masks_runs_along_with_the_source(source, tmp_path):
    path = media.video(tmp_path / "masks.mp4", wandering(20))
    region = open_region(Keep(mask=str(path), feather=0), source)
    for index, weights in zip((17, 18, 19, 19, 19), region.weights(17, 22), strict=True):
        columns = weights.any(0).nonzero()[:, 0]
        assert abs(int(columns[0]) - index) <= 1 and abs(int(columns[-1]) - index - 15) <= 1
    assert torch.equal(region.weights(3, 5)[1], region.weights(4, 5)[0])


def test_there_may_be_a_mask_for_every_frame(source):
    masks = torch.from_numpy(wandering(20)[..., 0] / 255.0)
    assert torch.equal(region_of(masks, source, 0).weights(4, 9), masks[4:9].float())
    with pytest.raises(InputError, match="7 masks for a source of 20 frames"):
        region_of(masks[:7], source)


def test_masks_of_a_variable_rate_stay_with_their_frames(tmp_path):
    """A telephone's frames do not come evenly, so a mask's place is not its share of the length."""
    path, times = sources.variable(tmp_path)
    masks = torch.zeros(len(times), 48, 64)
    for index, mask in enumerate(masks):
        mask[:, index] = 1
    source = SourceVideo(path, 64, 48, 25)
    seen = [int(weights.any(0).nonzero()) for weights in region_of(masks, source, 0).weights(0, 30)]
    assert seen == sources.on_screen(times, 30) == [media.index_of(frame.numpy()) for frame in source.frames(0, 30)]


@pytest.mark.parametrize(("level", "word"), [(0, "nowhere"), (255, "everywhere")])
def test_masks_that_say_nothing_are_refused(source, level, word):
    with pytest.raises(InputError, match=f"{word} white once it is fitted to 48x32"):
        region_of(torch.full((1, 32, 48), level / 255), source)


def test_a_mask_of_another_shape_is_refused(source, tmp_path):
    Image.fromarray(np.full((32, 32), 255, np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match="mask.png is 32x32 but the picture is 48x32"):
        open_region(Keep(mask=str(tmp_path / "mask.png")), source)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(), "keep has no region"),
        (dict(mask="m.png", box=(0, 0, 8, 8)), "keep has mask and box"),
        (dict(mouth="yes"), "keep.mouth 'yes' is not offered. Use one of auto"),
        (dict(mask="m.png", feather=-1), "keep.feather -1"),
        (dict(mask="m.png", feather=2.5), "keep.feather 2.5"),
        (dict(box=(8, 0, 8, 8)), r"keep.box \[8, 0, 8, 8\]"),
        (dict(box=(0, 0, 8)), r"keep.box \[0, 0, 8\]"),
        (dict(box=5), "keep.box 5"),
        (dict(mask=5), "keep.mask 5"),
    ],
)
def test_what_is_kept_has_to_be_said_well(values, message):
    with pytest.raises(InputError, match=message):
        Keep(**values)


# Mouths


@pytest.fixture
def face(tmp_path):
    """A woman's face that moves to the right by four pixels a frame, and a frame without it in the middle."""
    picture = data.astronaut()[:256, 96:352]
    frames = np.stack([np.roll(picture, 4 * index, 1) for index in range(6)])
    frames[3] = 128
    return SourceVideo(media.video(tmp_path / "face.mp4", frames), 256, 256, 25)


def test_mouths_are_found_and_followed(face):
    pytest.importorskip("mediapipe", reason="the optional package mediapipe finds faces")
    weights = open_region(Keep(mouth="auto", feather=2), face).weights(0, 6)
    mouth, eyes, corner = (140, 128), (95, 128), (20, 20)
    assert weights[:, mouth[0], mouth[1]].eq(1).all(), "in the frame without a face, where its neighbors have it"
    assert not weights[:, eyes[0], eyes[1]].any() and not weights[:, corner[0], corner[1]].any()
    middle = [float((frame.sum(0) * torch.arange(256)).sum() / frame.sum()) for frame in weights]
    assert middle[5] > middle[0] + 4
    assert torch.equal(weights[2:4], open_region(Keep(mouth="auto", feather=2), face).weights(0, 6)[2:4])


def test_without_the_package_one_sentence_says_so(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe.python.solutions.face_mesh", None)
    with pytest.raises(UnsupportedError, match='mouth auto needs a mediapipe.*pip install "mediapipe<0.10.22"'):
        open_region(Keep(mouth="auto"), source)
