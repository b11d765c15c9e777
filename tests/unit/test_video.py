"""Pictures and videos that come in: reading, fitting, frames by time, speakers' regions."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image
from support import media_files as media

from wanvideo.errors import InputError
from wanvideo.request import Speaker
from wanvideo.video.picture import fit, fit_mask, load_mask, load_picture
from wanvideo.video.reader import VideoFrames, is_video, picture_size, probe
from wanvideo.video.regions import speaker_masks, stack_masks

ORIENTATION = 0x0112


def gradient(height=30, width=40):
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], -1).astype(np.uint8)


# Pictures


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_lossless_pictures_are_read_exactly(tmp_path, suffix):
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(gradient()).save(path, lossless=True)
    assert np.array_equal(load_picture(path), gradient())
    assert picture_size(path) == (40, 30)


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_a_rotated_photograph_is_turned_upright(tmp_path, orientation, turns):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "photo.png"
    Image.fromarray(gradient()).save(path, exif=exif)
    assert np.array_equal(load_picture(path), np.rot90(gradient(), turns))
    assert picture_size(path) == ((30, 40) if turns % 2 else (40, 30))


def test_transparent_parts_are_seen_on_white(tmp_path):
    rgba = np.dstack([gradient(), np.full((30, 40), 255, np.uint8)])
    rgba[:10, :, 3], rgba[10:20, :, 3] = 0, 128
    Image.fromarray(rgba).save(tmp_path / "cutout.png")
    picture = load_picture(tmp_path / "cutout.png")
    assert (picture[:10] == 255).all() and np.array_equal(picture[20:], gradient()[20:])
    half = gradient()[10:20] * (128 / 255) + 255 * (127 / 255)
    assert np.abs(picture[10:20] - half).max() <= 1


def test_palettes_with_a_transparent_entry(tmp_path):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((3, 4), 1)
    image.save(tmp_path / "palette.png", transparency=0)
    picture = load_picture(tmp_path / "palette.png")
    assert tuple(picture[4, 3]) == (200, 100, 50) and tuple(picture[0, 0]) == (255, 255, 255)


def test_sixteen_bit_gray_is_scaled_not_cut(tmp_path):
    levels = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    assert load_picture(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_cmyk_gray_and_one_bit(tmp_path):
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
    assert np.abs(load_picture(tmp_path / "print.jpg")[0, 0].astype(int) - (255, 0, 0)).max() <= 3
    Image.new("L", (4, 4), 77).save(tmp_path / "gray.png")
    assert (load_picture(tmp_path / "gray.png") == 77).all()
    Image.new("1", (4, 4), 1).save(tmp_path / "bit.png")
    assert (load_picture(tmp_path / "bit.png") == 255).all()


def test_unusable_pictures_say_why(tmp_path):
    with pytest.raises(InputError, match="no file .*missing.png.* a picture"):
        load_picture(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(InputError, match="text.png is a text file, not a picture"):
        load_picture(tmp_path / "text.png")
    Image.fromarray(gradient(300, 300)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    with pytest.raises(InputError, match="cut.png cannot be read"):
        load_picture(tmp_path / "cut.png")
    with pytest.raises(InputError, match="is a folder"):
        load_picture(tmp_path)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(InputError, match="floating point"):
        load_picture(tmp_path / "float.tiff")


def test_a_picture_of_monstrous_size_is_refused(tmp_path, monkeypatch):
    Image.fromarray(gradient()).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    for reader in (load_picture, picture_size):
        with pytest.raises(InputError, match="huge.png has too many pixels. At most 67 million"):
            reader(tmp_path / "huge.png")


def test_masks_are_white_where_the_person_is(tmp_path):
    levels = np.zeros((20, 30), np.uint8)
    levels[5:9, 10:20], levels[0, 0], levels[0, 1] = 255, 127, 128
    Image.fromarray(levels).save(tmp_path / "mask.png")
    assert np.array_equal(load_mask(tmp_path / "mask.png"), levels > 127)
    cutout = np.full((20, 30, 4), 255, np.uint8)
    cutout[..., 3] = levels
    Image.fromarray(cutout).save(tmp_path / "alpha.png")
    assert np.array_equal(load_mask(tmp_path / "alpha.png"), levels > 127)
    Image.fromarray((levels > 0).astype(np.uint8)).save(tmp_path / "labels.png")
    with pytest.raises(InputError, match="labels.png is nowhere white: its brightest value is 1 of 255"):
        load_mask(tmp_path / "labels.png")


# Fitting


@pytest.mark.parametrize("size", [(64, 48), (40, 30), (33, 90), (200, 61), (832, 480)], ids=str)
def test_fit_scales_to_cover_and_cuts_the_middle(size):
    source_width, source_height = size
    picture, width, height = gradient(source_height, source_width), 64, 48
    scale = max(height / source_height, width / source_width)
    resized_width, resized_height = int(np.ceil(scale * source_width)), int(np.ceil(scale * source_height))
    image = Image.fromarray(picture).resize((resized_width, resized_height), Image.Resampling.BILINEAR)
    top, left = round((resized_height - height) / 2), round((resized_width - width) / 2)
    expected = np.asarray(image)[top : top + height, left : left + width]
    result = fit(picture, width, height)
    assert result.shape == (3, height, width) and result.dtype == torch.float32
    assert np.abs(result.permute(1, 2, 0).numpy() - (expected / 127.5 - 1)).max() < 1e-6


def test_fit_keeps_a_picture_of_the_right_size():
    restored = ((fit(gradient(48, 64), 64, 48) + 1) * 127.5).round().permute(1, 2, 0).to(torch.uint8)
    assert np.array_equal(restored.numpy(), gradient(48, 64))


def test_fit_mask_cuts_what_fit_cuts():
    mask = np.zeros((90, 60), bool)
    mask[30:60, 20:40] = True
    picture = np.repeat((mask * 255).astype(np.uint8)[..., None], 3, -1)
    fitted, seen = fit_mask(mask, 64, 48), fit(picture, 64, 48)[0] > 0
    assert fitted.shape == (48, 64) and fitted.dtype == torch.bool
    assert (fitted != seen).float().mean() < 0.05


def test_a_picture_like_a_thread_is_refused():
    with pytest.raises(InputError, match="1x10000 is too narrow"):
        fit(np.zeros((10000, 1, 3), np.uint8), 832, 480)


# Videos by time


def test_frames_by_time_of_a_25_fps_video(tmp_path):
    path = media.video(tmp_path / "clip.mp4", media.numbered_frames(40))
    with VideoFrames(path) as video:
        assert video.size == (64, 48) and video.num_frames == 40 and video.duration_s == pytest.approx(1.6)
        for index in (0, 7, 3, 39, 12, 13, 0, 38):
            assert media.index_of(video.frame_at(index / 25)) == index
        assert media.index_of(video.frame_at(0.5 / 25)) == 0
        assert media.index_of(video.frame_at(-3.0)) == 0
        assert media.index_of(video.frame_at(99.0)) == 39
        assert media.index_of(video.frame_at(5 / 25)) == 5


@pytest.mark.parametrize("fps", [30, 24, "30000/1001", 50])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_other_rates_are_followed_in_time(tmp_path, fps, suffix):
    """At 25 frames a second of result, source frame floor(time x rate) is on screen; Matroska stamps whole ms."""
    path, rate = tmp_path / f"clip.{suffix}", Fraction(fps)
    media.video(path, media.numbered_frames(44), fps=fps)
    with VideoFrames(path) as video:
        for number in range(0, 20):
            moment, slack = Fraction(number, 25), Fraction(1, 2000) if suffix == "mkv" else Fraction(0)
            early, late = (max(0, int((moment + offset) * rate)) for offset in (-slack, slack))
            assert early <= media.index_of(video.frame_at(number / 25)) <= late


@pytest.mark.parametrize(("suffix", "codec"), [("avi", "ffv1"), ("mkv", "ffv1"), ("mp4", "libx264")])
def test_every_container_shows_the_same_frame_at_a_time(tmp_path, suffix, codec):
    """An AVI ticks once a frame, which is no reason to show the next one half a frame early."""
    path = media.video(tmp_path / f"clip.{suffix}", media.numbered_frames(40), codec=codec)
    with VideoFrames(path) as video:
        assert [media.index_of(video.frame_at(k / 60)) for k in range(90)] == [k * 25 // 60 for k in range(90)]


def test_whole_milliseconds_move_no_frame_of_a_video_that_begins_later(tmp_path):
    times = [Fraction(k, 30) for k in range(1, 41)]
    path = media.video(tmp_path / "rest.mkv", media.numbered_frames(40), times=times)
    with VideoFrames(path) as video:
        assert [media.index_of(video.frame_at(k / 30)) for k in range(40)] == list(range(40))


def test_frames_that_an_edit_list_leaves_out_are_not_counted(tmp_path):
    """As a telephone trims a recording: what is cut off stays in the file."""
    times = [Fraction(k, 25) for k in range(-10, 30)]
    path = media.video(tmp_path / "cut.mp4", media.numbered_frames(40), times=times, max_b_frames=0)
    info = probe(path)
    assert (info.frames, info.fps, info.duration_s) == (30, 25, pytest.approx(1.2))
    with VideoFrames(path) as video:
        assert video.num_frames == 30 and media.index_of(video.frame_at(0.0)) == 10


def test_a_variable_rate_is_followed_in_time(tmp_path):
    times = np.cumsum([0.0, 0.02, 0.5, 0.04, 0.04, 1.3, 0.1, 0.033])
    path = media.video(tmp_path / "phone.mp4", media.numbered_frames(len(times)), times=times, keyframe=3)
    with VideoFrames(path) as video:
        for moment in (0.0, 0.01, 0.02, 0.3, 0.55, 0.561, 1.0, 1.89, 1.91, 2.02, 2.04, 9.0, 0.3, 1.0):
            expected = int(np.searchsorted(times, moment + 1e-5, "right")) - 1
            assert media.index_of(video.frame_at(moment)) == expected, moment


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mp4", "libx264"), ("mkv", "libx264"), ("ts", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx-vp9"),
     ("mov", "mpeg4"), ("mpg", "mpeg2video"), ("h264", "libx264")],
)  # fmt: skip
def test_jumps_land_where_walking_does(tmp_path, suffix, codec):
    """Far jumps forth and back, across key frames, give the frames that reading straight through gives."""
    path = media.video(tmp_path / f"clip.{suffix}", media.numbered_frames(400), codec=codec, keyframe=30)
    moments = [index / 25 for index in (0, 100, 20, 390, 210, 399, 5, 300)]
    with VideoFrames(path) as straight:
        expected = {moment: straight.frame_at(moment) for moment in sorted(moments)}
    with VideoFrames(path) as jumping:
        for moment in moments:
            assert np.array_equal(jumping.frame_at(moment), expected[moment]), moment
    # Raw streams have no times at all; everything else is exact to the frame.
    if suffix != "h264":
        assert [media.index_of(expected[moment]) for moment in moments] == [round(m * 25) % 45 for m in moments]


@pytest.mark.parametrize(
    ("matrix", "turns"), [((0, 1, -1, 0), 3), ((0, -1, 1, 0), 1), ((-1, 0, 0, -1), 2)], ids=["right", "left", "over"]
)
def test_a_video_filmed_upright_is_turned(tmp_path, matrix, turns):
    """(0, 1, -1, 0) is what telephones write when held upright: shown a quarter turn clockwise."""
    frames = np.full((6, 48, 64, 3), 30, np.uint8)
    frames[:, :24, :32] = 220
    path = media.turned(media.video(tmp_path / "phone.mp4", frames), matrix)
    with VideoFrames(path) as video:
        picture = video.frame_at(0.1)
        assert video.size == ((48, 64) if turns % 2 else (64, 48)) == picture_size(path)
    assert np.abs(picture.astype(int) - np.rot90(frames[0], turns)).mean() < 6


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [((-1, 0, 0, 1), lambda picture: picture[:, ::-1]), ((1, 0, 0, -1), lambda picture: picture[::-1]),
     ((0, 1, 1, 0), lambda picture: picture.swapaxes(0, 1)),
     ((0, -1, -1, 0), lambda picture: picture[::-1, ::-1].swapaxes(0, 1))],
    ids=["left to right", "top to bottom", "held upright", "held upside down"],
)  # fmt: skip
def test_a_mirrored_self_portrait_is_not_turned_over(tmp_path, matrix, shown):
    """A front camera may mirror by the matrix alone: a point (x, y) is seen at (a x + c y, b x + d y)."""
    frames = np.full((3, 48, 64, 3), 30, np.uint8)
    frames[:, :24, :32] = 220
    path = media.turned(media.video(tmp_path / "self.mp4", frames), matrix)
    with VideoFrames(path) as video:
        assert np.abs(video.frame_at(0.0).astype(int) - shown(frames[0])).mean() < 6


def test_anamorphic_pixels_are_made_square(tmp_path):
    path = media.video(tmp_path / "dv.mp4", media.numbered_frames(5), sample_aspect_ratio=Fraction(3, 2))
    assert picture_size(path) == (96, 48)


@pytest.mark.parametrize(
    ("height", "tags", "matrix", "levels"),
    [
        (48, {}, Colorspace.ITU601, ColorRange.MPEG),
        (720, {}, Colorspace.ITU709, ColorRange.MPEG),
        (48, {"colorspace": 1, "color_range": 1}, Colorspace.ITU709, ColorRange.MPEG),
        (720, {"colorspace": 5, "color_range": 2}, Colorspace.ITU601, ColorRange.JPEG),
    ],
    ids=["small untagged", "HD untagged", "tagged 709", "tagged 601, full range"],
)
def test_colors_survive_reading(tmp_path, height, tags, matrix, levels):
    """Tags are believed; untagged video is Rec. 601 in small sizes and Rec. 709 from HD on."""
    for color in ((220, 40, 60), (30, 160, 220), (250, 250, 250), (128, 128, 128)):
        with av.open(str(tmp_path / "clip.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, height, "yuv420p"
            stream.options = {"crf": "1"}
            for name, value in tags.items():
                setattr(stream.codec_context, name, value)
            frame = av.VideoFrame.from_ndarray(np.full((height, 64, 3), color, np.uint8), "rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=matrix, dst_color_range=levels)
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
        with VideoFrames(tmp_path / "clip.mp4") as video:
            assert np.abs(video.frame_at(0).astype(int) - color).max() <= 3, color


def test_colors_of_an_animation_are_exact(tmp_path):
    moving = [Image.new("RGB", (16, 16), (k * 40, 255 - k, 7)) for k in range(4)]
    moving[0].save(tmp_path / "moving.gif", save_all=True, append_images=moving[1:], duration=100)
    with VideoFrames(tmp_path / "moving.gif") as video:
        assert [tuple(video.frame_at(k / 10)[3, 3]) for k in range(4)] == [(k * 40, 255 - k, 7) for k in range(4)]


def test_a_cut_off_recording_shows_its_last_frame(tmp_path):
    path = media.video(tmp_path / "stream.mkv", media.numbered_frames(40))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with VideoFrames(path) as video:
        assert 5 < media.index_of(video.frame_at(60.0)) < 40
        assert media.index_of(video.frame_at(3 / 25)) == 3


def test_pictures_that_a_decoder_holds_where_a_file_fails_are_seen(tmp_path):
    """A disk that was full leaves zeros; FFmpeg fails there, while its threads are at work on what was before."""
    frames = np.random.default_rng(0).integers(0, 255, (60, 48, 64, 3)).astype(np.uint8)
    path = media.video(tmp_path / "full.ts", frames)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 5].ljust(len(data), b"\0"))
    with VideoFrames(path) as video:
        last = np.abs(frames.astype(int) - video.frame_at(99.0)).mean((1, 2, 3)).argmin()
        assert video.num_frames - 3 <= last < video.num_frames


def test_a_damaged_stretch_is_passed_over(tmp_path, caplog):
    path = media.video(tmp_path / "clip.avi", media.numbered_frames(60), codec="mjpeg", pix_fmt="yuvj420p")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 600] = bytes(600)
    path.write_bytes(data)
    with VideoFrames(path) as video:
        assert media.index_of(video.frame_at(0.0)) == 0
        assert media.index_of(video.frame_at(59 / 25)) == 59 % 45


def test_content_decides_what_is_a_video(tmp_path):
    media.video(tmp_path / "clip.mp4", media.numbered_frames(4)).rename(tmp_path / "really_a_video.png")
    Image.fromarray(gradient()).save(tmp_path / "really_a_picture.png")
    (tmp_path / "really_a_picture.png").rename(tmp_path / "really_a_picture.mp4")
    assert is_video(tmp_path / "really_a_video.png") and not is_video(tmp_path / "really_a_picture.mp4")
    moving = [Image.new("RGB", (16, 16), (k * 40, 0, 0)) for k in range(4)]
    moving[0].save(tmp_path / "moving.gif", save_all=True, append_images=moving[1:], duration=100)
    moving[0].save(tmp_path / "still.gif")
    assert is_video(tmp_path / "moving.gif") and not is_video(tmp_path / "still.gif")


def test_unusable_videos_say_why(tmp_path):
    with pytest.raises(InputError, match="gone.mp4"):
        is_video(tmp_path / "gone.mp4")
    (tmp_path / "notes.txt").write_text("hello, this is a long enough text file\n" * 20)
    (tmp_path / "empty.mp4").touch()
    media.wav(tmp_path / "speech.wav", media.tone(16000, 0.5), 16000)
    for name, says in (("notes.txt", "a text file, not a picture or a video"),
                       ("empty.mp4", "cannot be read as a picture or a video"),
                       ("speech.wav", "no video, only audio")):  # fmt: skip
        for reader in (is_video, VideoFrames, probe, picture_size):
            with pytest.raises(InputError, match=says):
                reader(tmp_path / name)
    whole = media.video(tmp_path / "clip.mp4", media.numbered_frames(30))
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(InputError, match="cut.mp4"):
        VideoFrames(tmp_path / "cut.mp4")


def test_probe_counts_what_the_file_does_not_state(tmp_path):
    for suffix in ("mp4", "mkv", "ts"):
        path = media.video(tmp_path / f"clip.{suffix}", media.numbered_frames(33), fps=30)
        info = probe(path)
        assert (info.frames, info.width, info.height, info.audio_rate) == (33, 64, 48, None)
        assert info.duration_s == pytest.approx(33 / 30, abs=0.002) and info.fps == pytest.approx(30, rel=0.01)


# Regions


def test_boxes_are_rows_then_columns():
    speakers = (Speaker("a", box=(10, 4, 90, 60)), Speaker("b", box=(10, 70, 90, 120)))
    masks = speaker_masks(speakers, (128, 96), 128, 96)
    assert masks.shape == (3, 96, 128) and masks.dtype == torch.float32
    assert masks[0, 10:90, 4:60].all() and masks[0].sum() == 80 * 56
    assert masks[1, 10:90, 70:120].all() and masks[1].sum() == 80 * 50
    assert torch.equal(masks[2], 1 - masks[:2].sum(0))


def test_two_speakers_are_placed_left_and_right():
    masks = speaker_masks((Speaker("a"), Speaker(None)), (201, 101), 201 // 16 * 16, 96)
    source = np.zeros((2, 101, 201), bool)
    source[0, 5:95, 5:95] = True
    source[1, 5:95, 105:195] = True
    expected = torch.stack([fit_mask(half, 192, 96) for half in source]).float()
    assert torch.equal(masks[:2], expected)


def test_one_speaker_needs_no_mask(caplog):
    assert speaker_masks((Speaker("a"),), (64, 64), 64, 64) is None
    assert speaker_masks((), (64, 64), 64, 64) is None
    with caplog.at_level("INFO", "wanvideo"):
        assert speaker_masks((Speaker("a", box=(0, 0, 9, 9)),), (64, 64), 64, 64) is None
    assert "second, silent speaker" in caplog.text


def test_painted_masks_of_another_resolution(tmp_path):
    left, right = np.zeros((48, 64), np.uint8), np.zeros((96, 128), np.uint8)
    left[:, :30], right[:, 70:] = 255, 255
    Image.fromarray(left).save(tmp_path / "left.png")
    Image.fromarray(right).save(tmp_path / "right.png")
    speakers = tuple(Speaker("x", mask=str(tmp_path / name)) for name in ("left.png", "right.png"))
    masks = speaker_masks(speakers, (128, 96), 128, 96)
    assert masks[0, :, :60].all() and not masks[0, :, 60:].any()
    assert masks[1, :, 70:].all() and not masks[1, :, :70].any()
    with pytest.raises(InputError, match="speaker 1, .*left.png, is 64x48 but the picture is 100x100"):
        speaker_masks(speakers, (100, 100), 96, 96)


@pytest.mark.parametrize(
    ("boxes", "says"),
    [
        (((0, 0, 90, 60), (200, 0, 300, 60)), "box of speaker 2, .* is outside the picture of 96 rows and 128"),
        (((0, 0, 90, 60), (3, 97, 9, 103)), "region of speaker 2 is empty once the picture is fitted to 128x96"),
        (((0, 0, 90, 80), (0, 20, 90, 100)), "speakers 1 and 2 overlap by"),
        (((0, 0, 90, 60), None), "Speaker 2 has neither a box nor a mask"),
    ],
)
def test_unusable_regions_name_the_speaker(boxes, says):
    with pytest.raises(InputError, match=says):
        speaker_masks([Speaker("x", box=box) for box in boxes], (128, 96), 128, 96)


def test_a_region_that_the_crop_removes_is_an_error():
    """A tall picture loses its top and bottom in a wide video."""
    speakers = (Speaker("a", box=(100, 0, 300, 64)), Speaker("b", box=(0, 64, 60, 128)))
    with pytest.raises(InputError, match="speaker 2 is empty once"):
        speaker_masks(speakers, (128, 400), 128, 96)


def test_three_speakers_need_places():
    with pytest.raises(InputError, match="3 speakers need a box or mask each"):
        speaker_masks([Speaker("x")] * 3, (128, 96), 128, 96)


def test_edges_may_touch_a_little():
    regions = np.zeros((2, 160, 320), bool)
    regions[0, :, :161], regions[1, :, 160:] = True, True
    masks = stack_masks(regions, 320, 160)
    assert masks[2].sum() == 0


def test_a_box_beyond_the_edge_is_cut_and_said(caplog):
    speakers = (Speaker("a", box=(0, 0, 500, 60)), Speaker("b", box=(0, 64, 96, 128)))
    with caplog.at_level("INFO", "wanvideo"):
        masks = speaker_masks(speakers, (128, 96), 128, 96)
    assert masks[0].sum() == 96 * 60 and "ends at the picture's edge: row 96" in caplog.text
