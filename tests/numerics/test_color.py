"""Color matching against stored vectors and, on further pictures, against color-matcher and scikit-image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from color_matcher import ColorMatcher
from safetensors.torch import load_file
from scipy.linalg import sqrtm
from skimage import color as skimage_color

from wanvideo.errors import InputError
from wanvideo.request import COLOR_METHODS
from wanvideo.sampling.color import PIXELS_AT_ONCE, match_color

DATA = Path(__file__).parent / "data" / "colour.safetensors"
TRANSFERS = [name for name in COLOR_METHODS if name not in ("disabled", "lab")]
TOLERANCE = {name: 1e-5 if name == "hm" else 1e-4 for name in COLOR_METHODS}


@pytest.fixture(scope="module")
def vectors():
    return load_file(DATA)


def picture(seed, height, width, base, spread):
    """8-bit picture in -1..1: soft gradients of three mixed channels with grain."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    waves = np.stack([np.sin(4 * rows + 5 * columns * k + rng.uniform(0, 6)) for k in range(3)], -1)
    mixed = waves @ rng.uniform(-0.5, 0.9, (3, 3)) + rng.normal(0, 0.1, (height, width, 3))
    levels = np.round(255 * (base + spread * mixed)).clip(0, 255)
    return torch.from_numpy(levels / 255).float() * 2 - 1


def oracle(source, target, method):
    """color-matcher on one frame of -1..1 values; it works on 0..1 and writes into its inputs."""
    source, target = (value.double().numpy() * 0.5 + 0.5 for value in (source, target))
    return torch.from_numpy(ColorMatcher().transfer(src=source, ref=target, method=method)) * 2 - 1


def lab_oracle(source, target):
    source, target = (skimage_color.rgb2lab(value.double().numpy() * 0.5 + 0.5) for value in (source, target))
    for channel in range(3):
        values, wanted = source[..., channel], target[..., channel]
        scale = wanted.std() / values.std() if values.std() > 1e-6 else 0.0
        source[..., channel] = (values - values.mean()) * scale + wanted.mean()
    return torch.from_numpy(skimage_color.lab2rgb(source).clip(0, 1)) * 2 - 1


@pytest.mark.parametrize("method", TRANSFERS)
def test_transfers_agree_with_the_vectors(vectors, method):
    result = match_color(vectors["source"][None] * 2 - 1, vectors["target"] * 2 - 1, method)[0] * 0.5 + 0.5
    assert (result - vectors[method]).abs().max() <= TOLERANCE[method]


@pytest.mark.parametrize("strength", [0.8, 1.0])
def test_lab_agrees_with_the_vectors(vectors, strength):
    result = match_color(vectors["video"] * 2 - 1, vectors["target"] * 2 - 1, "lab", strength)
    assert (result - vectors[f"lab_{strength}"].movedim(0, -1)).abs().max() <= TOLERANCE["lab"]


@pytest.mark.parametrize("method", TRANSFERS)
@pytest.mark.parametrize("size", [(40, 56), (33, 71)], ids=str)
def test_transfers_agree_with_color_matcher(method, size):
    frames = torch.stack([picture(seed, 40, 56, 0.35 + 0.1 * seed, 0.15) for seed in range(3)])
    target = picture(9, *size, 0.5, 0.2)
    result = match_color(frames, target, method)
    for frame, matched in zip(frames, result, strict=True):
        assert (matched - oracle(frame, target, method)).abs().max() <= 2 * TOLERANCE[method]


def test_lab_agrees_with_scikit_image():
    frames = torch.stack([picture(seed, 40, 56, 0.3 + 0.1 * seed, 0.2) for seed in range(4)])
    target = picture(11, 33, 71, 0.55, 0.15)
    for frame, matched in zip(frames, match_color(frames, target, "lab"), strict=True):
        assert (matched - lab_oracle(frame, target)).abs().max() <= 2 * TOLERANCE["lab"]


def test_histograms_with_few_levels_and_other_sizes():
    """Many equal values, and a target with fewer pixels than the frame has and the other way round."""
    rng = np.random.default_rng(3)
    few = torch.from_numpy(rng.integers(0, 4, (20, 30, 3)) / 3).float() * 2 - 1
    for size in ((7, 11), (50, 41)):
        target = torch.from_numpy(rng.integers(0, 9, (*size, 3)) / 8).float() * 2 - 1
        result = match_color(few[None], target, "hm")[0]
        assert (result - oracle(few, target, "hm")).abs().max() <= 1e-5


@pytest.mark.parametrize("method", COLOR_METHODS)
def test_a_picture_matched_to_itself_stays(method):
    target = picture(2, 24, 40, 0.5, 0.2)
    result = match_color(target[None], target, method, 1.0)[0]
    # reinhard's two matrices are rounded, and so not quite each other's inverse; it also lifts black to 1/255.
    assert (result - target).abs().max() <= (2e-2 if method == "reinhard" else 1e-4)


@pytest.mark.parametrize("method", COLOR_METHODS[1:])
def test_strength_blends(method):
    frames, target = picture(1, 24, 40, 0.4, 0.2)[None], picture(2, 24, 40, 0.6, 0.1)
    full, part = (match_color(frames, target, method, strength) for strength in (1.0, 0.3))
    assert torch.allclose(part, 0.7 * frames + 0.3 * full, atol=1e-6)
    assert match_color(frames, target, method, 0.0) is frames


def degenerate_frames():
    rng = np.random.default_rng(5)
    gray = torch.from_numpy(rng.uniform(-1, 1, (16, 24, 1))).float().expand(-1, -1, 3)
    one_channel = torch.full((16, 24, 3), -1.0)
    one_channel[..., 1] = gray[..., 0]
    noise = torch.from_numpy(rng.normal(0, 1e-7, (16, 24, 3))).float()
    return {
        "black": torch.full((16, 24, 3), -1.0),
        "white": torch.full((16, 24, 3), 1.0),
        "flat color": torch.tensor([0.3, -0.2, 0.7]).expand(16, 24, 3),
        "gray": gray.contiguous(),
        "one channel": one_channel,
        "nearly flat": 0.1 + noise,
        "one bright pixel": torch.full((16, 24, 3), -1.0).index_put((torch.tensor(0), torch.tensor(0)), torch.ones(3)),
        "beyond the range": torch.from_numpy(rng.normal(0, 3, (16, 24, 3))).float(),
    }


@pytest.mark.parametrize("method", COLOR_METHODS[1:])
@pytest.mark.parametrize("name", degenerate_frames())
def test_degenerate_frames_stay_finite(method, name):
    frame, target = degenerate_frames()[name], picture(2, 24, 40, 0.5, 0.2)
    for source, reference in ((frame, target), (target, frame), (frame, frame)):
        assert match_color(source[None], reference, method).isfinite().all()


@pytest.mark.parametrize("method", ["mkl", "lab", "reinhard"])
def test_a_flat_frame_takes_the_mean(method):
    frame, target = torch.full((1, 16, 24, 3), 0.25), picture(2, 24, 40, 0.5, 0.1)
    result = match_color(frame, target, method)
    assert (result - result[0, 0, 0]).abs().max() < 1e-4
    assert (result[0, 0, 0] - target.mean((0, 1))).abs().max() < (1e-5 if method == "mkl" else 0.1)


def test_gray_takes_on_the_colors_that_go_with_lightness():
    """Of gray, covariances have one direction: what varies with it in the target is regression, in closed form."""
    gray, target = degenerate_frames()["gray"], picture(2, 24, 40, 0.5, 0.2)
    level, axis = gray[..., :1].double(), torch.full((3,), 3**-0.5, dtype=torch.float64)
    spread = target.double().flatten(0, 1).T.cov() @ axis
    standard = (level - level.mean()) / level.std()
    expected = target.double().mean((0, 1)) + standard * spread / (spread @ axis).sqrt()
    assert (match_color(gray[None], target, "mkl")[0] - expected).abs().max() <= 1e-5


def test_colors_of_a_plane_are_those_of_nearly_a_plane():
    """Against the formula with roots of SciPy, of covariances with a little more in all directions."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 24), torch.linspace(-1, 1, 40), indexing="ij")
    frame, target = torch.stack((rows, columns, (rows + columns) / 2), -1), picture(2, 33, 71, 0.5, 0.2)
    pixels, wanted = (image.double().flatten(0, 1) for image in (frame, target))
    root = sqrtm(pixels.T.cov().numpy() + 1e-8 * np.eye(3)).real
    map_ = np.linalg.inv(root) @ sqrtm(root @ wanted.T.cov().numpy() @ root).real @ np.linalg.inv(root)
    expected = (pixels - pixels.mean(0)) @ torch.from_numpy(map_) + wanted.mean(0)
    assert (match_color(frame[None], target, "mkl")[0].flatten(0, 1) - expected).abs().max() <= 1e-3


def test_long_windows_are_worked_through_in_pieces():
    """Frames are independent: each comes out as it would alone, in whatever group it was."""
    height = width = 512
    frames = torch.stack([picture(seed, height, width, 0.4, 0.05 + 0.02 * seed) for seed in range(10)])
    assert PIXELS_AT_ONCE // (height * width) < len(frames)
    target = picture(20, 64, 64, 0.5, 0.2)
    together = match_color(frames, target, "mkl")
    assert torch.allclose(together[9], match_color(frames[9:], target, "mkl")[0], atol=1e-6)
    assert together.shape == frames.shape and together.dtype == frames.dtype


def test_dtype_is_kept_and_the_input_untouched():
    frames, target = picture(1, 16, 16, 0.4, 0.2)[None].bfloat16(), picture(2, 16, 16, 0.6, 0.1).bfloat16()
    before = frames.clone()
    for method in COLOR_METHODS:
        assert match_color(frames, target, method).dtype == torch.bfloat16
    assert torch.equal(frames, before)


def test_disabled_and_no_frames_return_the_input():
    frames, target = picture(1, 16, 16, 0.4, 0.2)[None], picture(2, 16, 16, 0.6, 0.1)
    assert match_color(frames, target, "disabled") is frames
    assert match_color(frames[:0], target, "mkl").shape == (0, 16, 16, 3)


@pytest.mark.parametrize(
    ("method", "strength", "shape", "says"),
    [
        ("mlk", 1.0, (1, 4, 4, 3), "Did you mean 'mkl'"),
        ("mkl", 1.5, (1, 4, 4, 3), "color_strength 1.5"),
        ("mkl", float("nan"), (1, 4, 4, 3), "from 0 to 1"),
        ("mkl", 1.0, (1, 3, 4, 4), r"\[1, 3, 4, 4\]"),
        ("mkl", 1.0, (4, 4, 3), r"\[4, 4, 3\]"),
    ],
)
def test_bad_inputs(method, strength, shape, says):
    with pytest.raises(InputError, match=says):
        match_color(torch.zeros(shape), torch.zeros(4, 4, 3), method, strength)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", COLOR_METHODS[1:])
def test_the_gpu_agrees_with_the_cpu(method):
    frames = torch.stack([picture(seed, 96, 160, 0.4, 0.2) for seed in range(5)])
    target = picture(9, 96, 160, 0.55, 0.15)
    expected = match_color(frames, target, method)
    result = match_color(frames.cuda(), target, method)
    assert result.is_cuda
    assert (result.cpu() - expected).abs().max() <= TOLERANCE[method]
