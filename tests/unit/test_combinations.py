"""Storage format x LoRA x streaming x compiling x speakers, and the table of it in docs/formats.

`PYTHONPATH=.:tests python tests/unit/test_combinations.py` runs every cell and writes the table.
"""

import re
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from support import quantized_files as files
from support import recipes
from support.checks import relative_error
from support.packed import packed_transformer
from support.tiny import tiny_transformer

from wanvideo.checkpoints.load import load_transformer
from wanvideo.errors import UnsupportedError
from wanvideo.lora.apply import apply_loras
from wanvideo.lora.use import LoraUse
from wanvideo.memory.placement import check_parameters
from wanvideo.memory.residency import Residency
from wanvideo.ops.linear.formats import FORMATS

ROOT = Path(__file__).resolve().parents[2]
# Largest relative error of a velocity against the model that is not quantized. GGUF's K types come out of llama.cpp
# alone, so their files are only compared with their own numbers.
BOUNDS = {
    "dense": 0.0, "fp8": 0.03, "fp8_e5m2": 0.06, "int8": 0.01, "fp4": 0.09, "Q8_0": 0.006, "Q5_1": 0.04, "Q5_0": 0.04,
    "Q4_1": 0.08, "Q4_0": 0.08,
}  # fmt: skip
ROWS = {
    "plain numbers (run in fp32)": ("dense",), "fp8 e4m3: plain, scaled, by rows, quanto": ("fp8",),
    "fp8 e5m2: plain, scaled, quanto": ("fp8_e5m2",), "int8: by rows, quanto": ("int8",), "NVFP4": ("fp4",),
    "GGUF Q8_0": ("Q8_0",), "GGUF Q5_0, Q5_1": ("Q5_0", "Q5_1"), "GGUF Q4_0, Q4_1": ("Q4_0", "Q4_1"),
    "GGUF Q2_K, Q3_K, Q4_K, Q5_K, Q6_K": ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
}  # fmt: skip
NAMES = tuple(name for names in ROWS.values() for name in names)
LORAS = {"none": None, "one": 0.7, "steps": (1.0, 0.4)}
SPEAKERS = (1, 2)
HOW = ("resident", "streamed", "compiled")
OWN_NUMBERS = 1e-5  # relative error against dense layers with the same numbers, where a LoRA is merged if it can be


def compiled_cases(name):
    """(LoRA, speakers) that run compiled: three for a row of the table, shared by its formats."""
    row, names = next((row, names) for row, names in enumerate(ROWS.values()) if name in names)
    cases = [(lora, SPEAKERS[(number + row) % 2]) for number, lora in enumerate(LORAS)]
    return cases[names.index(name) :: len(names)]


def inputs(speakers):
    return recipes.transformer_inputs(2, 8, 8, speakers, 500, 9)


def lora():
    state = {}
    for n in range(recipes.TINY["num_layers"]):
        for part, rows in (("self_attn.q", 256), ("cross_attn.v", 256), ("audio_cross_attn.proj", 256), ("ffn.0", 384)):
            layer = f"diffusion_model.blocks.{n}.{part}"
            state[f"{layer}.lora_A.weight"] = recipes.tensor(f"{layer}.a", (4, 256), 1, 0.05)
            state[f"{layer}.lora_B.weight"] = recipes.tensor(f"{layer}.b", (rows, 4), 1, 0.3)
    return state


def with_lora(model, kind):
    apply_loras(model, [] if LORAS[kind] is None else [LoraUse(lora(), LORAS[kind])])
    return model


def velocities(model, speakers):
    """Of two steps."""
    found = []
    for step in range(2):
        model.set_step(step)
        found.append(model(**inputs(speakers)))
    return torch.stack(found)


def make(name, dense=False):
    return tiny_transformer() if name == "dense" else packed_transformer(name, dense)


@cache
def unquantized(kind, speakers):
    return velocities(with_lora(tiny_transformer(), kind), speakers)


def typical_error(one, two):
    """Of the median token. With two speakers a token that attends to both alike may get the other one's label."""
    tokens = ((one - two).unfold(3, 2, 2).unfold(4, 2, 2), two.unfold(3, 2, 2).unfold(4, 2, 2))
    wrong, size = (part.square().sum((1, 5, 6)).sqrt() for part in tokens)
    return float(wrong.median() / size.mean())


def count(graph, example_inputs):
    return graph.forward


@torch.no_grad()
def run(name):
    """Run every cell of a format's row.

    Returns: (LoRA, speakers, how) of what was run, with how: resident, streamed or compiled.
    """
    model, plain, ran, without = make(name), make(name, dense=True), [], None
    for kind in LORAS:
        with_lora(plain, kind)
        for speakers in SPEAKERS:
            residency = Residency(with_lora(model, kind), "cpu")
            residency.place(0)
            found = velocities(model, speakers)
            ran.append((kind, speakers, "resident"))
            without = found if kind == "none" else without
            assert (kind == "none") == torch.equal(found[0], without[0])
            assert relative_error(found, velocities(plain, speakers)) <= OWN_NUMBERS, (kind, speakers)
            if name in BOUNDS:
                rounding = relative_error if speakers == 1 else typical_error
                assert rounding(found, unquantized(kind, speakers)) <= BOUNDS[name], (kind, speakers)
            residency.place(len(model.blocks))
            assert torch.equal(velocities(model, speakers), found), (kind, speakers)
            check_parameters(model, "cpu")
            ran.append((kind, speakers, "streamed"))
            if (kind, speakers) in compiled_cases(name):
                torch._dynamo.reset()
                model.compile_blocks("default", count)
                for num_streamed in (len(model.blocks), 0):
                    residency.place(num_streamed)
                    assert torch.equal(velocities(model, speakers), found), (kind, speakers, num_streamed)
                model.compile_blocks(None)
                ran.append((kind, speakers, "compiled"))
            residency.offload()
    torch._dynamo.reset()
    return ran


def planned(name):
    cells = {(kind, speakers, how) for kind in LORAS for speakers in SPEAKERS for how in HOW[:2]}
    return cells | {(*case, "compiled") for case in compiled_cases(name)}


def test_every_format_has_a_row():
    assert set(NAMES) == {"dense", *FORMATS} and len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_of_a_format(name):
    assert set(run(name)) == planned(name)


def changed(state, **ends):
    layer = "blocks.0.ffn.0"
    return state | {f"{layer}.{end.replace('__', '.')}": value for end, value in ends.items()}


def iq_file(path):
    """The first Q8_0 matrix of a GGUF file, called IQ4_XS in the header."""
    files.write_gguf(path, recipes.transformer_state_dict(5), "Q8_0")
    data, name = bytearray(path.read_bytes()), b"blocks.0.ffn.0.weight"
    data[data.index(name) + len(name) + 4 + 2 * 8] = 23
    path.write_bytes(data)
    return path


def refused():
    """What cannot be read, and the sentence that says so."""
    base = recipes.transformer_state_dict(5)
    rotated = files.marker({"format": "int8_tensorwise", "convrot": True})
    fp8, _ = files.quanto(base, torch.float8_e4m3fn)
    states = {
        "mxfp8": changed(files.comfy_fp8(base)[0], comfy_quant=files.marker({"format": "mxfp8"})),
        "int8, rotated (convrot)": changed(files.int8_rows(base), comfy_quant=rotated),
        "quanto int4, int2": changed(fp8, weight___data=torch.zeros(192, 256, dtype=torch.uint8)),
        "NVFP4, scaled inputs": changed(files.nvfp4(base), pre_quant_scale=torch.ones(256)),
    }
    with tempfile.TemporaryDirectory() as folder:
        for label, state in states.items():
            yield label, sentence(files.write(Path(folder) / "model.safetensors", state))
        yield "GGUF IQ types", sentence(iq_file(Path(folder) / "model.gguf"))
    dora = lora() | {"diffusion_model.blocks.0.self_attn.q.dora_scale": torch.ones(256)}
    with pytest.raises(UnsupportedError) as raised:
        apply_loras(tiny_transformer(), [LoraUse(dora)])
    yield "LoRA of the DoRA kind", " ".join(str(raised.value).split())


def sentence(path):
    with pytest.raises(UnsupportedError) as raised:
        load_transformer(path)
    return " ".join(str(raised.value).split())


WORDS = {
    "docs/formats.md": {
        "head": ("weights of the blocks", "error allowed"), "resident": "resident", "streamed": "streamed",
        "compiled": "compiled", "none": "no LoRA", "one": "LoRA", "steps": "LoRA by step", "exact": "0",
        "own": "0 to its own numbers", "refused": ("refused", "what is said"),
    },
    "docs/formats_zh.md": {
        "head": ("各 block 的权重", "允许误差"), "resident": "常驻", "streamed": "流式", "compiled": "编译",
        "none": "无 LoRA", "one": "LoRA", "steps": "逐步 LoRA", "exact": "0", "own": "与其自身数值相比为 0",
        "refused": ("拒绝", "提示"),
    },
}  # fmt: skip


def table(readme):
    words = WORDS[readme]
    columns = [(kind, how) for kind in LORAS for how in HOW]
    lines = [[*words["head"], *(f"{words[kind]}, {words[how]}" for kind, how in columns)]]
    lines.append(["---"] * len(lines[0]))
    for label, names in ROWS.items():
        bound = BOUNDS.get(names[0])
        error = words["own"] if bound is None else f"{100 * bound:g} %" if bound else words["exact"]
        ran = set().union(*map(planned, names))
        cells = [", ".join(str(n) for n in SPEAKERS if (kind, n, how) in ran) for kind, how in columns]
        lines.append([label, error, *cells])
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    rows += ["", "| " + " | ".join(words["refused"]) + " |", "|---|---|"]
    return "\n".join([*rows, *(f"| {label} | {said} |" for label, said in refused())])


MARKED = re.compile(r"(?<=<!-- formats -->\n)(.*?)(?=\n<!-- /formats -->)", re.S)


@pytest.mark.parametrize("readme", WORDS)
def test_the_table_of_the_readme_is_the_one_that_was_run(readme):
    (committed,) = MARKED.findall((ROOT / readme).read_text(encoding="utf-8"))
    assert committed == table(readme)


if __name__ == "__main__":
    for each in NAMES:
        assert set(run(each)) == planned(each)
        print(f"{each}: {len(planned(each))} cells run")
    for each in WORDS:
        path = ROOT / each
        content = table(each)
        path.write_text(MARKED.sub(lambda _: content, path.read_text(encoding="utf-8")), encoding="utf-8")
