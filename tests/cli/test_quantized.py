"""Quantized models through the command line: the published quanto set, and files that `convert` writes."""

import json

import numpy as np
import safetensors.torch
import torch
from support import jobs, media_files
from support import quantized_files as files

from wanvideo.cli import convert, generate
from wanvideo.cli.main import run
from wanvideo.synthetic.models import SPEECH, WAN

E4M3 = torch.float8_e4m3fn


def adapter():
    return jobs.official() / "InfiniteTalk" / "single" / "infinitetalk.safetensors"


def generated(folder, name, *flags):
    """The frames of a short clip."""
    content = {"prompt": "She talks.", "cond_video": jobs.picture(folder)}
    path = folder / "job.json"
    path.write_text(json.dumps(content | {"cond_audio": {"person1": jobs.speech(folder, 0.4)}}), encoding="utf-8")
    common = [
        "--device", "cpu", "--dtype", "fp32", "--size", "48x48", "--frame_num", "9", "--motion_frame", "5",
        "--scheduler", "euler", "--sample_steps", "2", "--sample_text_guide_scale", "1.0",
        "--sample_audio_guide_scale", "1.0", "--ckpt_dir", str(jobs.official() / WAN),
        "--wav2vec_dir", str(jobs.official() / SPEECH), "--input_json", str(path), "--save_file", str(folder / name),
    ]  # fmt: skip
    assert run(generate.main, [*common, *flags]) == 0
    return media_files.decoded_frames(folder / f"{name}.mp4")


def far(one, two):
    return float(np.abs(one.astype(float) - two).mean())


def test_a_quanto_file_of_base_and_adapter_with_its_text_encoder(tmp_path, caplog):
    wan = jobs.official() / WAN
    merged = safetensors.torch.load_file(adapter())
    for shard in wan.glob("diffusion_pytorch_model*.safetensors"):
        merged |= safetensors.torch.load_file(shard)
    text = torch.load(next(wan.glob("models_t5*.pth")), weights_only=True)
    place = tmp_path / "quant_models"
    place.mkdir()
    for name, listed, state in (("infinitetalk_single_fp8", None, merged), ("t5_fp8", "t5_map_fp8", text)):
        stored, layers = files.quanto({key: value.float() for key, value in state.items()}, E4M3)
        files.write(place / f"{name}.safetensors", stored)
        (place / f"{listed or name}.json").write_text(json.dumps(layers))
    jobs.capture_log(caplog)
    flags = ["--quant", "fp8", "--quant_dir", str(place / "infinitetalk_single_fp8.safetensors")]
    quantized = generated(tmp_path, "quanto", *flags)
    loaded = jobs.loads(caplog)
    assert any("t5_fp8.safetensors" in line and " x fp8" in line for line in loaded)
    assert any("infinitetalk_single_fp8.safetensors" in line and " x fp8" in line for line in loaded)
    dense = generated(tmp_path, "dense", "--infinitetalk_dir", str(adapter()))
    assert 0 < far(quantized, dense) < 8


def test_a_converted_base_makes_what_quantizing_while_loading_makes(tmp_path, caplog, capsys):
    base = next((jobs.comfy() / "diffusion_models").glob("wan2.1*"))
    target = tmp_path / "base_int8.safetensors"
    assert run(convert.main, ["--in", str(base), "--out", str(target), "--to", "int8"]) == 0
    assert "matrices in int8" in capsys.readouterr().out
    flags = ["--quant", "int8", "--infinitetalk_dir", str(adapter())]
    jobs.capture_log(caplog)
    converted = generated(tmp_path, "converted", *flags, "--quant_dir", str(target))
    assert any("base_int8.safetensors" in line for line in jobs.loads(caplog))
    assert np.array_equal(converted, generated(tmp_path, "loading", *flags, "--dit_path", str(base)))


def test_four_bits_are_not_for_the_text_encoder(tmp_path, caplog):
    jobs.capture_log(caplog)
    generated(tmp_path, "fp4", "--quant", "fp4", "--infinitetalk_dir", str(adapter()))
    assert "The text encoder is quantized to fp8, not fp4." in caplog.text
