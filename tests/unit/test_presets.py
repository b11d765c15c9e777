"""Presets: complete, exact, and second to what the user says."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from wanvideo.cli import plan
from wanvideo.cli import presets as command
from wanvideo.cli.generate import read_job
from wanvideo.errors import InputError
from wanvideo.presets import choose_preset, load_preset, preset_names
from wanvideo.request import EngineOptions, LoopSettings, LoraFile
from wanvideo.sampling.setup import SamplingSetup

ROOT = Path(__file__).resolve().parents[2]
NAMES = [
    "01_ultra_fast", "02_comfyui_equivalent", "03_balanced", "04_high_quality", "05_low_vram", "06_720p_high_res",
]  # fmt: skip


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "job.json"
    path.write_text(json.dumps({"prompt": "she talks", "cond_video": "a.png", "cond_audio": {"person1": "a.wav"}}))
    return str(path)


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "weights"
    (folder / "base").mkdir(parents=True)
    for name in ("InfiniteTalk/single/infinitetalk.safetensors", "chinese-wav2vec2-base/pytorch_model.bin"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()
    for name in NAMES:
        for lora in load_preset(name).loras:
            path = folder / lora.files[0]
            path.parent.mkdir(exist_ok=True)
            path.touch()
    return folder


def read(job, weights, *flags):
    return read_job(["--input_json", job, "--ckpt_dir", str(weights / "base"), *flags])


def test_all_six_are_there():
    assert preset_names() == NAMES
    assert [load_preset(name).memory_gb for name in NAMES] == [10, 12, 14, 18, 10, 22]
    assert [load_preset(name).settings.steps for name in NAMES] == [4, 4, 8, 40, 4, 4]


@pytest.mark.parametrize("name", NAMES)
def test_sets_are_all_that_differs(name):
    """What a preset lists is what it sets: everything else is as it is without a preset."""
    preset, listed = load_preset(name), dict(load_preset(name).sets)
    for given, default in ((preset.settings, LoopSettings()), (preset.options, EngineOptions())):
        for field, value in vars(given).items():
            assert value == listed.get(field, getattr(default, field)), field
    assert all(f"{field} " in preset.describe() for field in listed)


def test_the_workflow_s_numbers():
    preset = load_preset("comfyui_equivalent")
    s = preset.settings
    assert (s.steps, s.shift, s.guidance_scale, s.scheduler) == (4, 11.0, 1.0, "flowmatch_distill")
    assert (s.window_frames, s.motion_frames) == (81, 9)
    assert (preset.options.quantize, preset.options.blocks_to_stream, preset.loras[0].strength) == ("fp8", 30, 0.8)


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_takes_all_of_it(job, weights, name):
    preset, read_in = load_preset(name), read(job, weights, "--preset", name)
    settings, options = preset.apply(read_in.request.settings, read_in.options)
    assert settings == read_in.request.settings and options == read_in.options
    assert read_in.request.size == preset.size
    wanted = tuple(LoraFile(str(weights / lora.files[0]), lora.strength) for lora in preset.loras)
    assert read_in.files.loras == wanted


def test_flags_win(job, weights):
    read_in = read(
        job, weights, "--preset", "01_ultra_fast", "--sample_steps", "6", "--quant", "int8", "--blocks_to_swap", "7",
        "--size", "640x640", "--lora_scale", "0.5", "--sample_audio_guide_scale", "3",
    )  # fmt: skip
    settings = read_in.request.settings
    assert (settings.steps, settings.audio_guidance_scale, settings.shift) == (6, 3.0, 11.0)
    assert (read_in.options.quantize, read_in.options.blocks_to_stream) == ("int8", 7)
    assert read_in.request.size == (640, 640) and read_in.files.loras[0].strength == 0.5


def test_a_lora_of_one_s_own_is_used(job, weights):
    read_in = read(job, weights, "--preset", "balanced", "--lora_dir", "mine.safetensors")
    assert read_in.files.loras == (LoraFile("mine.safetensors", 1.0),)


@pytest.mark.parametrize("name", ["03_balanced", "balanced", "03"])
def test_a_preset_goes_by_its_number_too(name):
    assert load_preset(name).name == "03_balanced"


@pytest.mark.parametrize("wrong", ["balance", "07_best", "", "3", "auto"])
def test_unknown_presets_are_refused(wrong):
    with pytest.raises(InputError, match="There is no preset .*03_balanced.*06_720p_high_res.$"):
        load_preset(wrong)


def test_auto_goes_by_memory(job, weights):
    assert choose_preset(int(12e9)).name == "05_low_vram"
    assert choose_preset(int(24e9)).name == "03_balanced"
    assert read(job, weights, "--preset", "auto", "--device", "cpu").options.blocks_to_stream == 40


def test_a_plan_for_another_gpu_has_the_preset_of_that_gpu(job, weights, monkeypatch):
    asked = []
    monkeypatch.setattr(plan, "read_job", lambda rest, program, free_bytes: asked.append((rest, free_bytes)) or 1 / 0)
    for memory, free_bytes in (["--memory_gb", "24"], 24 * 10**9), ([], None):
        with pytest.raises(ZeroDivisionError):
            plan.main([*memory, "--preset", "auto"])
        assert asked[-1] == (["--preset", "auto"], free_bytes)
    for free_bytes, name in (24 * 10**9, "multitalk"), (12 * 10**9, "flowmatch_distill"):
        flags = ["--input_json", job, "--ckpt_dir", str(weights / "base"), "--preset", "auto"]
        assert read_job(flags, free_bytes=free_bytes).request.settings.scheduler == name
    with pytest.raises(InputError, match="--gpu names the GPU that --memory_gb is of"):
        plan.main(["--gpu", "H200"])


@pytest.mark.parametrize(
    ("flags", "streamed"),
    [
        ([], -1), (["--blocks_to_swap", "12"], 12), (["--num_persistent_param_in_dit", "0"], 40),
        (["--num_persistent_param_in_dit", "7000000000"], 26), (["--num_persistent_param_in_dit", "99000000000"], 0),
    ],
)  # fmt: skip
def test_blocks_to_stream(job, weights, flags, streamed):
    assert read(job, weights, *flags).options.blocks_to_stream == streamed


def test_teacache_is_the_reference_s(job, weights):
    cache = read(job, weights, "--use_teacache").request.settings.step_cache
    assert (cache.kind, cache.threshold, cache.start_step, cache.coefficients) == ("teacache", 0.2, 5, "480")


@pytest.mark.parametrize("wrong", [{"quantize": "fp7"}, {"blocks_to_stream": -2}, {"prefetch": 0}, {"dtype": "bf8"}])
def test_bad_options_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        EngineOptions(**wrong)


def test_the_list_names_every_number(capsys):
    assert command.main([]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES) and "blocks_to_stream 30" in printed
    assert command.main(["05_low_vram"]) == 0
    assert "tiled_vae true" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_scripts_run_the_command_line(name, job, weights, monkeypatch):
    """Each script hands its preset and all further arguments on; the flags it hands on are read without a complaint."""
    done = subprocess.run(
        ["bash", str(ROOT / "run_configs" / f"{name}.sh"), "--input_json", job],
        env={"PYTHON": "echo", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    program, *arguments = done.stdout.split()
    assert program == "generate_infinitetalk.py" and arguments[-2:] == ["--input_json", job]
    (weights / "base").rename(weights / "Wan2.1-I2V-14B-480P")
    (weights / "Wan2.1-I2V-14B-480P" / "diffusion_pytorch_model.safetensors").touch()
    monkeypatch.chdir(weights.parent)
    read_in = read_job(arguments)
    assert read_in.request.settings == load_preset(name).apply(read_in.request.settings, read_in.options)[0]


@pytest.mark.parametrize("readme", ["README.md", "README_zh.md", "README_es.md"])
def test_the_readmes_tables_have_the_presets_numbers(readme):
    """Steps, LoRA and memory, a row each."""
    rows = re.findall(
        r"\| `(0\d_\w+)` \| (\d+)[,，] ?(\S+) \| (\d+) GB \|", (ROOT / readme).read_text(encoding="utf-8")
    )
    assert [name for name, *_ in rows] == NAMES
    for name, steps, lora, memory in rows:
        preset = load_preset(name)
        assert (int(steps), int(memory)) == (preset.settings.steps, preset.memory_gb), name
        wanted = preset.loras[0].what.partition(",")[0] if preset.loras else lora
        assert lora == wanted and (preset.loras or lora in ("none", "无", "ninguno")), name


@pytest.mark.parametrize("page", ["choosing.md", "choosing_zh.md"])
def test_the_guide_has_the_presets_numbers(page):
    """Steps, passes a step, weights, size, tiles and memory; and that of each kind of guidance."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(0\d_\w+)` \| (\d+) x (\d+)(.*?) \| .* \| (\d+) GB \|$", text, re.M)
    assert [name for name, *_ in rows] == NAMES
    for name, steps, passes, more, memory in rows:
        preset, settings = load_preset(name), load_preset(name).settings
        assert (int(steps), int(memory)) == (settings.steps, preset.memory_gb), name
        assert int(passes) == len(SamplingSetup.of(settings, has_audio=True).passes), name
        assert ("bf16" in more) == (preset.options.quantize is None), name
        assert ("720p" in more) == preset.size.endswith("720"), name
        assert any(word in more for word in ("tiled VAE", "分块 VAE")) == settings.tiled_vae, name
    guidance = re.findall(r"^\| [^|`]+ \| ([\d.]+) \| ([\d.]+) \| (\d+)[^|]* \| (\d) \| \d(?:x| 倍) \|$", text, re.M)
    assert len(guidance) == 3
    told = {(float(cfg), float(audio), float(shift), int(passes)) for cfg, audio, shift, passes in guidance}
    for name in NAMES:
        s = load_preset(name).settings
        passes = len(SamplingSetup.of(s, has_audio=True).passes)
        assert (s.guidance_scale, s.audio_guidance_scale, s.shift, passes) in told, name
