"""The fused kernels compile for GPUs that are not here and fit the little shared memory of consumers' cards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed; the eager references are used everywhere")
ROOT = Path(__file__).parents[2]
EVERYWHERE = {
    "_layer_norm", "_add_gated", "_quantize", "_widen", "_rms_norm_heads", "_gelu", "_pixel_norm_silu",
    "_scale_products", "_grouped_attention", "_dual_context_attention", "_region_shares",
}  # fmt: skip
LATER = {
    "_key_sums",
    "_column_ranges",
    "_copy",
    "_join_ranges",
    "_move_rows",
    "_move_values",
    "_scaling",
    "_conv",
    "_absorb_keys",
    "_absorb_values",
    "_absorbed_weights",
    "_absorbed_sum",
}  # for 8-bit numbers, and for a copy engine
GENERATIONS = {"86": EVERYWHERE, "120": EVERYWHERE | LATER}  # compute capability, of RTX 30 and RTX 50
SHARED_MEMORY = 101376  # bytes that a program may have there; GPUs of data centers (8.0, 9.0, 10.0) give it more


@pytest.mark.parametrize("generation", GENERATIONS)
def test_kernels_compile_and_fit(generation, tmp_path):
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    own = {"PYTHONPATH": path, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, ROOT / "tests" / "support" / "compile_kernels.py", generation]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **own})
    assert done.returncode == 0, done.stderr[-2000:]
    shared = json.loads(done.stdout.splitlines()[-1])
    assert shared.keys() == GENERATIONS[generation]
    assert {name: size for name, size in shared.items() if size > SHARED_MEMORY} == {}
