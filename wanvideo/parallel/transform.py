"""A plain transformer and VAE made those of many ranks, and back."""

from __future__ import annotations

from ..models.transformer import WanTransformer
from ..models.vae import WanVAE
from ..ops.attention.backends import Backend
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
    if mesh.sequence.size == 1:
        transformer.token_split = AllTokens()
        return transformer.set_attention(attention)
    split = StripSplit(mesh.sequence)

    def over_ranks(backend: Backend) -> Backend:
        return ulysses(ring(backend, mesh, split), mesh, split)

    transformer.token_split = split
    return transformer.set_attention(attention, over_ranks, mesh.ring.size > 1)


def split_rows(vae: WanVAE, mesh: Mesh) -> None:
    """Have all ranks of a mesh compute a VAE's pictures together; each is given and gets whole ones."""
    vae.row_split = HaloRows(mesh.everybody)
