"""Ceilings of the machine, the fused kernels and the attention backends, each against a plain computation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from measure import GIB, SIZES, Report, draw, relative, seconds
from torch import Tensor, nn

from wanvideo.ops import norm, quantized
from wanvideo.ops.attention import backends, dispatch, functions, lse
from wanvideo.ops.attention.regions import FrameRegions
from wanvideo.ops.attention.rope import video_rope
from wanvideo.ops.linear.formats import FORMATS


def ceilings(report: Report) -> None:
    tokens = SIZES["480p"].num_tokens
    a, b = draw(8192, 8192), draw(8192, 8192)
    report.add("ceilings", "bf16 matmul 8192^3", 2 * 8192**3 / seconds(lambda: a @ b, report.repeats) / 1e12, "TFLOP/s")
    for wide in (5120, 13824):
        x, w = draw(tokens, 5120), draw(wide, 5120)
        flops = 2 * tokens * 5120 * wide
        report.add(
            "ceilings",
            f"bf16 linear Lx5120->{wide}",
            flops / seconds(lambda: F.linear(x, w), report.repeats) / 1e12,
            "TFLOP/s",
        )
        rows, weight = norm.quantize_rows(x, torch.float8_e4m3fn), norm.quantize_rows(w, torch.float8_e4m3fn)
        run = lambda: torch._scaled_mm(  # noqa: E731
            rows.data, weight.data.t(), rows.scale, weight.scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
        )
        report.add(
            "ceilings", f"fp8 row-wise linear Lx5120->{wide}", flops / seconds(run, report.repeats) / 1e12, "TFLOP/s"
        )
    source, target = (
        torch.empty(GIB, dtype=torch.uint8).pin_memory(),
        torch.empty(GIB, dtype=torch.uint8, device="cuda"),
    )
    report.add(
        "ceilings",
        "host to device, pinned",
        1.073741824 / seconds(lambda: target.copy_(source, True), report.repeats),
        "GB/s",
    )
    big, other = draw(GIB), draw(GIB)
    report.add(
        "ceilings",
        "device copy (read + write)",
        4 * GIB / 1e9 / seconds(lambda: big.copy_(other), report.repeats),
        "GB/s",
    )


LINEARS = ("fp8", "int8", "fp4", "Q8_0", "Q6_K", "Q4_K")


@torch.inference_mode()
def linears(report: Report) -> None:
    """One linear layer in each storage format, what it does to its input included, beside dense bf16."""
    tokens, narrow, wide = SIZES["480p"].num_tokens, 5120, 13824
    x, weight, flops = draw(tokens, narrow), draw(wide, narrow), 2 * tokens * narrow * wide
    took = seconds(lambda: F.linear(x, weight), report.repeats)
    report.add("linears", f"bf16 Lx{narrow}->{wide}", 1000 * took, "ms", f"{flops / took / 1e12:.0f} TFLOP/s")
    for name in LINEARS:
        form = FORMATS[name]
        if form.quantize is None:  # only read: blocks of zeros take as long as others
            parts = {part: torch.zeros_like(like, device="cuda") for part, like in form.parts(weight.shape).items()}
        else:
            parts = form.quantize(weight)
        layer = form.layer(tuple(weight.shape), parts)
        layer.bias = nn.Parameter(draw(wide), requires_grad=False)
        took = seconds(lambda: layer(x), report.repeats)
        report.add("linears", f"{name} Lx{narrow}->{wide}", 1000 * took, "ms", f"{flops / took / 1e12:.0f} TFLOP/s")
        if layer.input_dtype in quantized.LARGEST:
            rows = norm.quantize_rows(x, layer.input_dtype)
            bare = seconds(lambda: layer(rows), report.repeats)
            report.add("linears", f"{name}, of that without quantizing the input", 1000 * bare, "ms")
        if form.quantize is not None:
            error = relative(layer(x[:4096]), F.linear(x[:4096], weight, layer.bias))
            report.add("linears", f"{name}, error to bf16", error, "")


def kernels(report: Report) -> None:
    tokens, dim, ffn, heads = SIZES["480p"].num_tokens, 5120, 13824, 40
    fp8 = torch.float8_e4m3fn
    x, y, wide = draw(tokens, dim), draw(tokens, dim), draw(tokens, ffn)
    scale, shift, gate, weight = (draw(dim, dtype=torch.float32) for _ in range(4))
    stream = draw(tokens, dim, dtype=torch.float32)
    table = video_rope(21, 30, 52, 128, x.device)
    mb = tokens * dim / 1e9
    cases = {
        "layer norm, bf16 out": (lambda: norm.layer_norm(stream, scale, shift, 1e-6, x.dtype), 6 * mb),
        "layer norm, fp8 out": (lambda: norm.layer_norm(stream, scale, shift, 1e-6, fp8), 5 * mb),
        "add + layer norm, fp8 out": (lambda: norm.add_layer_norm(stream, y, gate, scale, shift, 1e-6, fp8), 11 * mb),
        "add gated": (lambda: norm.add_gated(stream, y, gate), 10 * mb),
        "rms norm + rope, bf16 out": (lambda: norm.rms_norm_heads(x, weight, 1e-6, heads, table), 4 * mb),
        "rms norm + rope, fp8 out": (lambda: norm.rms_norm_heads(x, weight, 1e-6, heads, table, fp8), 3 * mb),
        "rms norm + rope, fp8 keys without their mean": (
            lambda: norm.rms_norm_keys(x, weight, 1e-6, heads, table, fp8),
            3 * mb,
        ),
        "of that the keys' mean": (lambda: norm.key_shift(x, weight, 1e-6, heads, table, fp8), mb / 16),
        "gelu, fp8 out": (lambda: norm.gelu(wide, fp8), 3 * mb * ffn / dim),
        "quantize rows": (lambda: norm.quantize_rows(x, fp8), 3 * mb),
    }
    for name, (function, gigabytes) in cases.items():
        took = seconds(function, report.repeats)
        report.add("kernels", name, took * 1e3, "ms", f"{gigabytes / took:.0f} GB/s")
    part = slice(0, 512)
    exact = [value[part].cpu().float() for value in (x, y)]
    cpu = [value.cpu() for value in (gate, scale, shift)]
    ours = norm.add_layer_norm(x[part].float(), y[part].float(), gate, scale, shift, 1e-6)[1].cpu()
    error = (ours - norm.add_layer_norm(*exact, *cpu, 1e-6)[1]).abs().max()
    report.add("kernels", "add + layer norm against its eager reference, fp32 max error", float(error), "")
    ours = norm.rms_norm_heads(x[part].float(), weight, 1e-6, heads, table[part]).cpu()
    error = (ours - norm.rms_norm_heads(exact[0], weight.cpu(), 1e-6, heads, table[part].cpu())).abs().max()
    report.add("kernels", "rms norm + rope against its eager reference, fp32 max error", float(error), "")
    ours = norm.layer_norm(x[part].float(), scale, shift, 1e-6, fp8)
    eager = norm.layer_norm(exact[0], scale.cpu(), shift.cpu(), 1e-6, fp8)
    differing = (ours.data.cpu().float() != eager.data.float()).float().mean()
    report.add("kernels", "layer norm to fp8: values that differ from the eager reference's", float(differing), "")


def attention_backends(report: Report) -> None:
    geometry = SIZES["480p"]
    tokens, heads = geometry.num_tokens, 40
    device, flops = torch.device("cuda"), 4 * tokens**2 * 128 * heads
    query, key, value = draw(1, tokens, heads, 128), draw(1, tokens, heads, 128), draw(1, tokens, heads, 128)
    part = 2048
    exact = lse.eager_attention(query[:, :part, :2].float(), key[:, :, :2].float(), value[:, :, :2].float())[0]
    for name, backend in backends.BACKENDS.items():
        reason = backends.refusal(name, device, torch.bfloat16, 128)
        if reason:
            print(f"attention   {name}: {reason}")
            continue
        given = *(x.to(backend.query_dtype or x.dtype) for x in (query, key)), value
        took = seconds(lambda backend=backend, given=given: backend.attend(*given), report.repeats)
        error = relative(backend.attend(*given)[:, :part, :2], exact)
        report.add(
            "attention",
            f"self-attention {name}",
            took * 1e3,
            "ms",
            f"{flops / took / 1e12:.0f} TFLOP/s, error {error:.4f}",
        )
        if backends.refusal(name, device, torch.bfloat16, 128, needs_lse=True) is None:
            took = seconds(lambda backend=backend, given=given: backend.attend_with_lse(*given), report.repeats)
            report.add("attention", f"self-attention {name}, with its log-sum-exp", took * 1e3, "ms")
    offset_keys(report, query, key, value)
    report.add("attention", f"auto picks {backends.choose('auto', device, torch.bfloat16, 128, heads).name}", 0, "")
    frames, per_frame = geometry.latent_frames, geometry.tokens_per_frame
    grouped, few = query[0].view(frames, per_frame, heads, 128), draw(frames, 32, heads, 128)
    both, labels = draw(frames, 64, heads, 128), torch.rand(tokens, device="cuda") * 24
    took = seconds(lambda: dispatch.grouped_attention(grouped, few, few), report.repeats)
    report.add("attention", "audio attention, one speaker", took * 1e3, "ms")
    took = seconds(lambda: dispatch.grouped_attention(grouped, both, both, labels), report.repeats)
    report.add("attention", "audio attention, two speakers, labels rotated", took * 1e3, "ms")
    took = seconds(lambda: functions.sdpa(grouped, few, few), report.repeats)
    report.add("attention", "the same by sdpa, one speaker", took * 1e3, "ms")
    ours = dispatch.grouped_attention(grouped[:2], both[:2], both[:2], labels[: 2 * per_frame]).cpu()
    eager = dispatch.grouped_attention(grouped[:2].cpu(), both[:2].cpu(), both[:2].cpu(), labels[: 2 * per_frame].cpu())
    report.add("attention", "audio attention, labels rotated: error to its eager reference", relative(ours, eager), "")
    members = torch.zeros(3, per_frame, device="cuda")
    members[0, :500], members[1, 800:1200], members[2, 1200:] = 1, 1, 1
    regions = FrameRegions.of_first_keys(members)
    took = seconds(lambda: dispatch.region_attention(query[0], key[0], regions), report.repeats)
    report.add(
        "attention",
        "speaker regions, bf16",
        took * 1e3,
        "ms",
        f"{2 * tokens * per_frame * 5120 / took / 1e12:.0f} TFLOP/s",
    )
    ours = dispatch.region_attention(query[0], key[0], regions)[:, :256].cpu()
    on_cpu = FrameRegions.of_first_keys(members.cpu())
    eager = dispatch.region_attention(query[0, :256].cpu().float(), key[0, :per_frame].cpu().float(), on_cpu)
    report.add("attention", "speaker regions: error to the eager reference", relative(ours, eager), "")
    q8, k8 = query[0].to(torch.float8_e4m3fn), key[0, :per_frame].to(torch.float8_e4m3fn)
    took = seconds(lambda: dispatch.region_attention(q8, k8, regions), report.repeats)
    report.add("attention", "speaker regions, fp8 queries", took * 1e3, "ms")
    region_shares(report, query, key, value, members)
    for tokens_of in (512, 257):
        text = draw(1, tokens_of, heads, 128)
        took = seconds(lambda text=text: functions.sdpa(query, text, text), report.repeats)
        report.add("attention", f"cross-attention to {tokens_of} tokens, sdpa", took * 1e3, "ms")
        if backends.refusal("flash_attn_3", device, torch.bfloat16, 128) is None:
            took = seconds(lambda text=text: functions.flash_3(query, text, text), report.repeats)
            report.add("attention", f"cross-attention to {tokens_of} tokens, flash_attn_3", took * 1e3, "ms")


def offset_keys(report: Report, query: Tensor, key: Tensor, value: Tensor) -> None:
    """Errors of 8 bits where all keys have an offset in 8 of 128 channels, 8 times their spread."""
    key = key.clone()
    key[..., ::16] += 8
    part, device = slice(0, 2048), query.device
    exact = lse.eager_attention(query[:, part, :2].float(), key[:, :, :2].float(), value[:, :, :2].float())[0]
    for name, backend in backends.BACKENDS.items():
        if backend.exact or backends.refusal(name, device, torch.bfloat16, 128):
            continue
        error = relative(backend.attend(query[:, part], key, value)[:, :, :2], exact)
        report.add("attention", f"self-attention {name}, keys with an offset: error", error, "")
        if backend.query_dtype is not None:
            given = query[:, part].to(backend.query_dtype), key.to(backend.query_dtype), value
            error = relative(backend.attend(*given)[:, :, :2], exact)
            report.add("attention", f"self-attention {name}, keys with an offset rounded as they are: error", error, "")


def region_shares(report: Report, query: Tensor, key: Tensor, value: Tensor, members: Tensor) -> None:
    """Self-attention with the shares of regions: without them, frame first, and as two and four GPUs bring its keys."""
    num_keys, in_frame = key.shape[1], members.shape[1]
    for name in ("hopper", "fp8"):
        backend = backends.BACKENDS[name]
        if backends.refusal(name, query.device, torch.bfloat16, 128):
            continue
        given = *(x.to(backend.query_dtype or x.dtype) for x in (query, key)), value
        orders = {"no regions": None, "frame first": FrameRegions.of_first_keys(members)}
        for ranks in (2, 4):
            starts = range(0, num_keys, num_keys // ranks)
            orders[f"frame in {ranks} slices"] = FrameRegions(
                members, tuple((start, start + in_frame // ranks) for start in starts)
            )
        for order, regions in orders.items():
            run = lambda regions=regions: dispatch.self_attention(*given, regions, backend, torch.bfloat16)  # noqa: E731
            report.add("attention", f"self-attention {name}, {order}", seconds(run, report.repeats) * 1e3, "ms")
