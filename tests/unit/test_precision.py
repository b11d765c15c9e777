"""What other code in the process told PyTorch of half precision does not reach frames, and is put back."""

import pytest
import torch
from torch.nn import functional as F

from wanvideo.ops.precision import matmul_modes


def test_attention_without_a_fused_kernel_sums_in_float32_whatever_the_process_allows():
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 64, 16, generator=generator).bfloat16()
    mask = torch.randn(64, 64, generator=generator).bfloat16()

    def attend():
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    usual = attend()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # as ComfyUI does when it starts
    try:
        assert not attend().equal(usual)
        with matmul_modes():
            assert attend().equal(usual)
        assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(False)


BACKENDS = torch.backends
TOLD = {
    "cuDNN by its new name": (BACKENDS.cudnn, "fp32_precision", "ieee"),
    "all by the new name": (BACKENDS, "fp32_precision", "tf32"),
    "products by the new name": (BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
    "products by the old name": (BACKENDS.cuda.matmul, "allow_tf32", True),
    "convolutions by the old name": (BACKENDS.cudnn, "allow_tf32", False),
}


def float32():
    return BACKENDS.cuda.matmul.fp32_precision, BACKENDS.cudnn.conv.fp32_precision


@pytest.mark.skipif(
    not hasattr(BACKENDS.cudnn, "conv"), reason="this PyTorch has one name for the precision of float32"
)
@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("told", [None, *TOLD])
def test_float32_is_what_was_asked_for_whatever_the_process_was_told(told, tf32):
    owner, name, value = TOLD.get(told, (BACKENDS.cudnn, "fp32_precision", BACKENDS.cudnn.fp32_precision))
    usual = getattr(owner, name)
    setattr(owner, name, value)
    try:
        before = float32()
        with matmul_modes(tf32):
            for within in (tf32, not tf32, tf32):
                with matmul_modes(within):
                    assert [precision == "tf32" for precision in float32()] == [within] * 2
            assert [precision == "tf32" for precision in float32()] == [tf32] * 2
        assert float32() == before
    finally:
        setattr(owner, name, usual)
