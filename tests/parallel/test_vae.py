"""Pictures over ranks: rows of each, their neighbors at every convolution, and the numbers of one rank."""

import functools

import pytest
from support import recipes
from support.ranks import run_ranks
from support.tiny import tiny_vae

from wanvideo.models.vae_tiling import Tiling
from wanvideo.parallel.layout import Layout
from wanvideo.parallel.vae import HaloRows


@functools.cache
def vae():
    return tiny_vae()


def given(rows):
    return (
        recipes.tensor("in.pixels", (3, 9, 8 * rows, 32), 5, 0.4).clamp(-1, 1),
        recipes.tensor("in.latents", (16, 3, rows, 4), 5),
    )


def both(mesh, rows, tiling):
    model = vae()
    if mesh is not None:
        model.row_split = HaloRows(mesh.everybody)
    pixels, latents = given(rows)
    return model.encode(pixels, tiling), model.decode(latents, tiling)


@pytest.mark.parametrize(("world", "rows"), [(2, 6), (3, 7), (4, 5), (4, 3)])
def test_encode_and_decode_are_exact(world, rows):
    """Fewer rows than ranks: everybody does all of it."""
    expected = both(None, rows, None)
    for result in run_ranks(Layout(ring=world), both, rows, None):
        for ours, alone in zip(result, expected, strict=True):
            assert ours.shape == alone.shape and (ours - alone).abs().max() <= 1e-5


def test_tiles_are_split_too():
    tiling = Tiling(32, 32, 16, 16)
    expected = both(None, 6, tiling)
    for result in run_ranks(Layout(ring=2), both, 6, tiling):
        for ours, alone in zip(result, expected, strict=True):
            assert (ours - alone).abs().max() <= 1e-5
