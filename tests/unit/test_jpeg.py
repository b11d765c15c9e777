"""A JPEG is read as ComfyUI reads it, upright, and what its decoder does not have is read all the same."""

import av
import numpy as np
import pytest
from PIL import Image
from support import jobs

from wanvideo.errors import InputError
from wanvideo.video.jpeg import decode_jpeg
from wanvideo.video.picture import ORIENTATION, load_picture

SAVED = {
    "420": {"quality": 85},
    "422": {"quality": 85, "subsampling": 1},
    "444": {"quality": 85, "subsampling": 0},
    "progressive": {"quality": 60, "progressive": True},
}


def saved(folder, size=(77, 51), mode="RGB", **how):
    path = folder / "picture.jpg"
    Image.open(jobs.picture(folder, *size)).convert(mode).save(path, **how)
    return path


def by_comfyui(path):
    """As `VideoFromFile.get_components` of ComfyUI 0.30 decodes a picture."""
    with av.open(str(path)) as container:
        frame = next(frame for packet in container.demux(video=0) for frame in packet.decode())
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation // 90))


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("size", [(77, 51), (96, 64), (9, 50), (1, 1)])
def test_every_pixel_is_that_of_comfyui(tmp_path, name, size):
    path = saved(tmp_path, size, **SAVED[name])
    pixels = load_picture(path)
    assert np.array_equal(pixels, by_comfyui(path)) and pixels.shape == (size[1], size[0], 3)
    assert decode_jpeg(path, *size) is not None
    assert np.abs(pixels.astype(int) - np.asarray(Image.open(path))).mean() < 8


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_it_is_turned_as_comfyui_turns_it(tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = saved(tmp_path, quality=90, exif=exif)
    assert np.array_equal(load_picture(path), by_comfyui(path))


def test_gray_and_cmyk_are_read_by_pillow(tmp_path):
    for mode in ("L", "CMYK"):
        path = saved(tmp_path, mode=mode)
        assert np.array_equal(load_picture(path), np.asarray(Image.open(path).convert("RGB")))
        assert decode_jpeg(path, 77, 51) is None


def test_a_header_that_lies_and_a_damaged_end_are_answered(tmp_path):
    path = saved(tmp_path)
    assert decode_jpeg(path, 16, 16) is None and decode_jpeg(path, 77, 52) is None
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(InputError, match="picture.jpg"):
        load_picture(path)
    path.write_bytes(b"")
    assert decode_jpeg(path, 77, 51) is None
