"""What other code in the process told PyTorch of half precision does not reach frames, and is put back."""

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
