"""The VAE against reference vectors, against diffusers' implementation, and against itself in other chunks."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import recipes
from support.checks import psnr
from support.tiny import tiny_vae

from wanvideo.errors import CheckpointError, InputError
from wanvideo.models.vae import VAEConfig, WanVAE
from wanvideo.models.vae_tiling import Tiling, over_tiles

DATA = Path(__file__).parent / "data"
VIDEO = recipes.tensor("in.video", (1, 3, 9, 64, 96), 105, 0.4).clamp(-1, 1)[0]
LATENTS = recipes.tensor("in.latents", (1, 16, 3, 8, 12), 105)[0]


@pytest.fixture(scope="module")
def vae():
    return tiny_vae()


def test_reference_vectors(vae):
    expected = load_file(DATA / "vae.safetensors")
    assert (vae.encode(VIDEO) - expected["encode"][0]).abs().max() <= 1e-4
    assert (vae.decode(LATENTS) - expected["decode"][0]).abs().max() <= 1e-4


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 21])
@pytest.mark.parametrize("frames", [1, 5, 9, 21])
def test_chunks_do_not_matter(vae, chunk, frames):
    video = recipes.tensor("clip", (3, frames, 16, 24), 1, 0.4)
    latents = recipes.tensor("latents", (16, (frames - 1) // 4 + 1, 2, 3), 1)
    vae.chunk = 1
    one_by_one = vae.encode(video), vae.decode(latents)
    vae.chunk = chunk
    together = vae.encode(video), vae.decode(latents)
    vae.chunk = None
    assert (together[0] - one_by_one[0]).abs().max() <= 1e-5
    assert (together[1] - one_by_one[1]).abs().max() <= 1e-5
    assert together[0].shape == latents.shape and together[1].shape == video.shape


def test_the_first_latent_does_not_depend_on_what_follows(vae):
    # The sums are the same, their rounding is not: a convolution of other batches may take another path.
    assert (vae.encode(VIDEO[:, :1])[:, 0] - vae.encode(VIDEO)[:, 0]).abs().max() <= 1e-5


def diffusers_twin(dim, state):
    """diffusers' VAE with our weights, by its own conversion of the official names."""
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    oracle = AutoencoderKLWan(base_dim=dim, z_dim=16)
    converted = convert_wan_vae_to_diffusers({key: value.clone() for key, value in state.items()})
    oracle.load_state_dict({key: value.reshape(oracle.state_dict()[key].shape) for key, value in converted.items()})
    return oracle.eval()


@torch.no_grad()
def test_agrees_with_diffusers_on_another_size():
    state = recipes.vae_state_dict(9, dim=16)
    ours, theirs = tiny_vae(9, 16), diffusers_twin(16, state)
    video, latents = recipes.tensor("v", (3, 13, 32, 48), 2, 0.4), recipes.tensor("l", (16, 4, 4, 6), 2)
    mean, std = (torch.tensor(v)[:, None, None, None] for v in (theirs.config.latents_mean, theirs.config.latents_std))
    encoded = (theirs.encode(video[None]).latent_dist.mode()[0] - mean) / std
    decoded = theirs.decode((latents * std + mean)[None], return_dict=False)[0][0]
    assert (ours.encode(video) - encoded).abs().max() <= 1e-4
    assert (ours.decode(latents).clamp(-1, 1) - decoded.clamp(-1, 1)).abs().max() <= 1e-4


def test_bf16_stays_close(vae):
    half = tiny_vae(dtype=torch.bfloat16)
    for ours, exact in ((half.encode(VIDEO), vae.encode(VIDEO)), (half.decode(LATENTS), vae.decode(LATENTS))):
        assert torch.nn.functional.cosine_similarity(ours.float().flatten(), exact.flatten(), 0) >= 0.999


def test_tiles_are_blended_without_seams(vae):
    latents = recipes.tensor("wide", (16, 2, 8, 20), 4).cumsum(-1) * 0.2
    small, whole = Tiling(64, 96, 32, 48), Tiling(64, 160, 32, 80)
    exact = vae.decode(latents)
    assert torch.equal(vae.decode(latents, tiling=whole), exact)
    tiled = vae.decode(latents, tiling=small)
    assert tiled.shape == exact.shape and psnr(tiled, exact) > 20
    jumps = (tiled.diff(dim=-1).abs().mean((0, 1, 2)) / exact.diff(dim=-1).abs().mean((0, 1, 2))).max()
    assert jumps < 2
    video = exact.clamp(-1, 1)
    assert torch.equal(vae.encode(video, tiling=whole), vae.encode(video))
    assert vae.encode(video, tiling=small).shape == latents.shape


@pytest.mark.parametrize("stride", [8, 16, 24, 32])
@pytest.mark.parametrize("from_latents", [False, True])
def test_tiles_that_agree_give_the_whole_however_far_apart(stride, from_latents):
    whole = torch.randn(3, 1, 5, 9)
    pixels = whole.repeat_interleave(8, 2).repeat_interleave(8, 3)
    given, expected = (whole, pixels) if from_latents else (pixels, whole)

    def work(tile):
        return tile.repeat_interleave(8, 2).repeat_interleave(8, 3) if from_latents else tile[:, :, ::8, ::8]

    cells = Tiling(32, 32, stride, stride).cells(8)
    torch.testing.assert_close(over_tiles(given, expected.shape, cells, work, from_latents=from_latents), expected)


@pytest.mark.parametrize("shape", [(3, 4, 16, 16), (3, 5, 12, 16), (4, 5, 16, 16)])
def test_clips_that_do_not_fit(vae, shape):
    with pytest.raises(InputError, match="4n \\+ 1"):
        vae.encode(torch.zeros(shape))


def test_other_vaes_and_tiles_are_refused(vae):
    shapes = {key: tuple(shape) for key, shape in recipes.vae_shapes(8, 48).items()}
    with pytest.raises(CheckpointError, match="48"):
        VAEConfig.from_shapes(shapes)
    with pytest.raises(CheckpointError, match="conv2.weight"):
        VAEConfig.from_shapes({})
    with pytest.raises(InputError, match=r"\[16, T, h, w\]"):
        vae.decode(torch.zeros(48, 2, 4, 4))
    with pytest.raises(InputError, match="multiples of 8"):
        Tiling(272, 272, 300, 144)


def test_published_size_has_194_tensors():
    with torch.device("meta"):
        full = WanVAE(VAEConfig(96))
    assert len(full.state_dict()) == 194
    assert sum(parameter.numel() for parameter in full.parameters()) == 126_892_531
