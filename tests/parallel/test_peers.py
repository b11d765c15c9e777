"""Ranks that write each other's memory, here all of one process, so that any device can be all of theirs."""

from itertools import accumulate, pairwise
from types import SimpleNamespace

import pytest
import torch
from support.checks import DEVICE, draw

from wanvideo.ops.attention import backends, dispatch
from wanvideo.ops.attention.operands import HeadNorm, OwnOperands
from wanvideo.ops.attention.regions import FrameRegions, RegionShares
from wanvideo.ops.attention.rope import video_rope
from wanvideo.ops.quantized import FP8

pytest.importorskip("triton", reason="Triton is not installed; ranks exchange through torch.distributed everywhere")
from wanvideo.ops.kernels import hopper_attention  # noqa: E402
from wanvideo.parallel import memory  # noqa: E402
from wanvideo.parallel.peers import PeerAttention, Sizes  # noqa: E402

REFUSAL = backends.refusal("fp8", torch.device(DEVICE), torch.bfloat16, 128)
HEADS = 6


class OneOfMany:
    """Memory of one of several ranks in one tensor. They take turns, so that nobody waits where they meet."""

    def __init__(self, everybody, index):
        self.own = everybody[index]
        self.addresses = [memory.data_ptr() for memory in everybody]
        self.offsets = [address - self.addresses[index] for address in self.addresses]

    def meet(self):
        pass


def of_ranks(counts, size, average=lambda shares: shares):
    everybody = torch.zeros(len(counts), size, dtype=torch.uint8, device=DEVICE)
    return [
        PeerAttention(index, lambda needed, index=index: OneOfMany(everybody, index), lambda: counts, average)
        for index in range(len(counts))
    ]


def projections(num_tokens, width, dtype):
    """Of key, value and query, and how the first and the last are normed."""
    drawn = [draw(num_tokens, HEADS * width, seed=seed).to(dtype) for seed in range(3)]
    rope = video_rope(1, 1, num_tokens, width, drawn[0].device)
    norms = [HeadNorm(draw(HEADS * width, seed=seed) * 0.1 + 1, 1e-6, HEADS, rope) for seed in (4, 5)]
    return drawn, norms


def operands(ranks, counts, width, dtype, query_dtype):
    (key, value, query), (key_norm, query_norm) = projections(sum(counts), width, dtype)
    spans = [slice(*pair) for pair in pairwise((0, *accumulate(counts)))]
    made = []
    for rank, own in zip(ranks, spans, strict=True):
        made.append([rank.key(key[own], key_norm._replace(rope=key_norm.rope[own]), query_dtype)])
        made[-1].append(rank.value(value[own], HEADS))
    for rank, own, operand in zip(ranks, spans, made, strict=True):
        operand.append(rank.query(query[own], query_norm._replace(rope=query_norm.rope[own]), query_dtype))
    return made


@pytest.mark.parametrize("counts", [(5, 4), (3, 3, 2)])
def test_operands_lie_where_they_are_attended_to(counts):
    size = Sizes(counts, HEADS, 16, torch.float32).starts()[""]
    ranks = of_ranks(counts, size)
    (key, value, query), (key_norm, query_norm) = projections(sum(counts), 16, torch.float32)
    own = OwnOperands()
    expected = own.key(key, key_norm, None), own.value(value, HEADS), own.query(query, query_norm, None)
    for _ in range(2):  # the second block writes over the first one's
        for index, made in enumerate(operands(ranks, counts, 16, torch.float32, None)):
            each = HEADS // len(counts)
            for ours, all_heads in zip(made, expected, strict=True):
                assert (ours - all_heads[:, :, index * each : (index + 1) * each]).abs().max() <= 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_are_in_the_type_of_the_model(monkeypatch, dtype):
    """The kernel writes bf16, whatever the linear layer behind it multiplies."""
    counts = (5, 4)
    attended = hopper_attention.Attended(None, None, None)
    monkeypatch.setattr(hopper_attention, "attend", lambda *_, **__: attended)
    ranks = of_ranks(counts, Sizes(counts, HEADS, 16, dtype).starts()[""])
    for rank, count, made in zip(ranks, counts, operands(ranks, counts, 16, dtype, None), strict=True):
        key, value, query = made
        rows, _ = rank.rows(query, key, value, None, dtype)
        assert rows.dtype == dtype and rows.shape == (count, HEADS * 16)
        assert rank.function(query, key, value)[0].dtype == dtype


@pytest.mark.parametrize(
    ("here", "worst", "kind", "said"),
    [("CUDA driver error: out of memory", 2, torch.cuda.OutOfMemoryError, "driver error"),
     (None, 2, torch.cuda.OutOfMemoryError, "another GPU"), ("no driver", 1, RuntimeError, "no driver"),
     (None, 1, RuntimeError, "another GPU")],
)  # fmt: skip
def test_memory_that_one_rank_does_not_get_is_refused_on_all_before_they_meet(monkeypatch, here, worst, kind, said):
    def empty(*_, **__):
        if here is not None:
            raise RuntimeError(here)

    def reduce_(flags, by):
        assert by == "max" and flags.item() == (worst if here else 0)
        return flags.fill_(worst)

    group = SimpleNamespace(handle="group", index=0, reduce_=reduce_)
    monkeypatch.setattr(memory, "_symmetric_memory", lambda: SimpleNamespace(empty=empty))
    with pytest.raises(RuntimeError, match=said) as raised:
        memory.PeerMemory(group, 8, torch.device("cpu"))
    assert raised.type is kind


def exact(num_tokens, regions):
    """Rows and shares, of operands that are not rounded."""
    (key, value, query), (key_norm, query_norm) = projections(num_tokens, 128, torch.bfloat16)
    own = OwnOperands()
    query, key = own.query(query.float(), query_norm, None), own.key(key.float(), key_norm, None)
    rows = dispatch.attend(query, key, own.value(value, HEADS).float())[0].flatten(1)
    return rows, dispatch.region_attention(query[0], key[0], regions)


@pytest.mark.gpu
@pytest.mark.skipif(REFUSAL is not None, reason=f"this attention cannot be used here: {REFUSAL}")
@pytest.mark.parametrize("rows_dtype", [torch.bfloat16, FP8])
@pytest.mark.parametrize("name", ["hopper", "fp8"])
@pytest.mark.parametrize("counts", [(700, 633), (450, 450, 433)])
def test_attention_of_all_ranks_is_that_of_one(name, counts, rows_dtype):
    backend, shares = backends.BACKENDS[name], []
    size = Sizes(counts, HEADS, 128, backend.query_dtype or torch.bfloat16).starts()[""]
    ranks = of_ranks(counts, size, lambda own: shares.append(own) or own)
    members = torch.zeros(2, 400, device=DEVICE)
    members[0, :150], members[1, 200:] = 1, 1
    regions = FrameRegions(members, ((100, 300), (800, 1000)))
    (key, value, query), (key_norm, query_norm) = projections(sum(counts), 128, torch.bfloat16)
    own, dtype = OwnOperands(), backend.query_dtype
    given = own.query(query, query_norm, dtype), own.key(key, key_norm, dtype), own.value(value, HEADS)
    expected, (expected_shares, *_) = dispatch.self_attention(*given, regions, backend, rows_dtype)
    made = operands(ranks, counts, 128, torch.bfloat16, dtype)
    rows = [
        rank.rows(query, key, value, regions, rows_dtype)[0]
        for rank, (key, value, query) in zip(ranks, made, strict=True)
    ]
    if name == "fp8" and rows_dtype == FP8:
        assert all(part.data.dtype == FP8 for part in rows)
        rows, expected = [part.dense(torch.float32) for part in rows], expected.dense(torch.float32)
    # A rank's rows are written by those that come later too, so that they are right when all have been asked for.
    together = torch.cat([part.float() for part in rows]), torch.stack([part.values for part in shares]).mean(0)
    by_one = expected.float(), RegionShares.of_all(expected_shares).values
    for ours, theirs, right in zip(together, by_one, exact(sum(counts), regions), strict=True):
        assert (ours - right).norm() <= 1.1 * (theirs - right).norm()
