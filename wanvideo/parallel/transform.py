"""A plain transformer and VAE made those of many ranks, and back."""

from __future__ import annotations

import torch

from ..models.transformer import WanTransformer
from ..models.vae import WanVAE
from ..ops.attention.backends import BACKENDS, Backend
from ..protocols import AllTokens
from .mesh import Mesh
from .ring import ring
from .sequence import StripSplit, ulysses
from .vae import HaloRows


def split_tokens(transformer: WanTransformer, mesh: Mesh, attention: str) -> str:
    """Have the ranks of `mesh.sequence` compute a transformer's tokens together.

    Every rank has the same weights and is given the same arguments; each gets the whole result.
    Args: attention: name of the backend. Returns: that of the one which is used.
    """
    attention = _agreed(transformer, mesh, attention)
    if mesh.sequence.size == 1:
        transformer.token_split = AllTokens()
        return transformer.set_attention(attention)
    split = StripSplit(mesh.sequence)

    def over_ranks(backend: Backend) -> Backend:
        return ulysses(ring(backend, mesh, split), mesh, split)

    transformer.token_split = split
    return transformer.set_attention(attention, over_ranks, mesh.ring.size > 1)


def _agreed(transformer: WanTransformer, mesh: Mesh, attention: str) -> str:
    """The first rank's backend: `auto` goes by times, which differ, and what ranks exchange depends on it."""
    names = list(BACKENDS)
    chosen = names.index(transformer.find_attention(attention, mesh.ring.size > 1).name)
    if mesh.world > 1:
        number = torch.tensor([chosen], device=mesh.device)
        mesh.everybody.broadcast_(number, 0)
        chosen = int(number)
    return names[chosen]


def split_rows(vae: WanVAE, mesh: Mesh) -> None:
    """Have all ranks of a mesh compute a VAE's pictures together; each is given and gets whole ones."""
    vae.row_split = HaloRows(mesh.everybody)
