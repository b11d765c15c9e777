"""The command line on tiny models: what it writes, and what it refuses before a weight is read."""

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from support import jobs, media_files

from wanvideo import TalkingVideoPipeline
from wanvideo.cli import generate
from wanvideo.cli.main import run
from wanvideo.request import Speaker
from wanvideo.synthetic.models import SPEECH, WAN
from wanvideo.video.reader import probe

ROOT = Path(__file__).resolve().parents[2]
FAST = [
    "--device", "cpu", "--dtype", "fp32", "--size", "48x48", "--frame_num", "13", "--motion_frame", "5",
    "--mode", "streaming", "--scheduler", "euler", "--sample_steps", "2", "--sample_shift", "7",
    "--sample_text_guide_scale", "1.0", "--sample_audio_guide_scale", "1.0",
]  # fmt: skip


def models(folder=None, adapter="single"):
    folder = folder or jobs.official()
    return [
        "--ckpt_dir", str(folder / WAN), "--wav2vec_dir", str(folder / SPEECH),
        "--infinitetalk_dir", str(folder / "InfiniteTalk" / adapter / "infinitetalk.safetensors"),
    ]  # fmt: skip


def job(folder, **changes):
    """The path of a job file over a small picture and half a second of sound."""
    content = {
        "prompt": "一个女人在说话。¡Qué bien!",
        "cond_video": jobs.picture(folder),
        "cond_audio": {"person1": jobs.speech(folder, 0.8, rate=44100, channels=2)},
    }
    path = Path(folder) / "job.json"
    path.write_text(json.dumps({**content, **changes}, ensure_ascii=False), encoding="utf-8")
    return ["--input_json", str(path)]


def made_with_python(folder, path):
    request = jobs.request(
        folder, [str(Path(folder) / "speech.wav")], prompts=("一个女人在说话。¡Qué bien!",), max_frames=1000,
        settings=replace(jobs.SETTINGS, shift=7.0, color_match="lab"),
    )  # fmt: skip
    return TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS).generate(request, path)


def test_command_script_and_library_make_the_same_frames(tmp_path, capsys):
    flags = [*models(), *FAST, *job(tmp_path)]
    assert run(generate.main, [*flags, "--save_file", str(tmp_path / "command")]) == 0
    assert capsys.readouterr().out.strip().endswith("command.mp4")
    script = [sys.executable, str(ROOT / "generate_infinitetalk.py"), *flags, "--save_file", str(tmp_path / "script")]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "script.mp4")
    assert "48x48, 20 frames (0.8 s): 2 windows of 2 steps" in done.stderr and "window 2/2" in done.stderr
    made_with_python(tmp_path, tmp_path / "library.mp4")
    command, script, library = (
        media_files.decoded_frames(tmp_path / f"{name}.mp4") for name in ("command", "script", "library")
    )
    assert command.shape == (20, 48, 48, 3)
    assert np.array_equal(command, script) and np.array_equal(command, library)
    info = probe(tmp_path / "command.mp4")
    assert (info.audio_rate, info.audio_channels) == (44100, 2) and info.duration_s == pytest.approx(0.8, abs=1e-3)


def test_two_people_in_multitalk_mode(tmp_path):
    sounds = {"person1": jobs.speech(tmp_path, 0.2, "a.wav"), "person2": jobs.speech(tmp_path, 0.2, "b.wav")}
    wide = {"cond_image": jobs.picture(tmp_path, 128, 64, "two.png"), "cond_video": None, "audio_type": "add"}
    boxes = {"person1": [10, 5, 60, 60], "person2": [10, 70, 60, 123]}
    flags = [*models(adapter="multi"), *FAST, *job(tmp_path, cond_audio=sounds, bbox=boxes, **wide)]
    more = ["--size", "96x48", "--task", "multitalk-14B", "--motion_frame", "5", "--use_apg", "--t5_cpu", "true"]
    assert run(generate.main, [*flags, *more, "--save_file", str(tmp_path / "two.mp4")]) == 0
    assert probe(tmp_path / "two.mp4").frames == 10


def test_comfyui_s_files_make_the_same_video(tmp_path):
    comfy = jobs.comfy()
    places = {
        "--vae_path": "vae",
        "--t5_path": "text_encoders",
        "--clip_path": "clip_vision",
        "--wav2vec_dir": "wav2vec2",
    }
    files = [
        item for flag, place in places.items() for item in (flag, str(next((comfy / place).glob("*.safetensors"))))
    ]
    base, adapter = sorted((comfy / "diffusion_models").iterdir(), reverse=True)
    flags = [*FAST, "--mode", "clip", *job(tmp_path)]
    single = [
        "--ckpt_dir",
        str(base),
        "--infinitetalk_dir",
        str(adapter),
        *files,
        "--save_file",
        str(tmp_path / "comfy"),
    ]
    assert run(generate.main, [*flags, *single]) == 0
    assert run(generate.main, [*flags, *models(), "--save_file", str(tmp_path / "official")]) == 0
    comfy, official = (media_files.decoded_frames(tmp_path / f"{name}.mp4") for name in ("comfy", "official"))
    assert np.array_equal(comfy, official)


def test_clip_mode_is_one_window(tmp_path, caplog):
    jobs.capture_log(caplog)
    flags = [*models(), *FAST, "--mode", "clip", *job(tmp_path), "--save_file", str(tmp_path / "clip"), "--dit_fsdp"]
    assert run(generate.main, flags) == 0
    assert "--dit_fsdp changes nothing without torchrun" in caplog.text
    assert probe(tmp_path / "clip.mp4").frames == 13


def test_a_lora_is_used_and_its_strength_matters(tmp_path):
    flags = [*models(), *FAST, *job(tmp_path), "--mode", "clip"]
    videos = []
    for name, more in (
        ("none", []),
        ("some", ["--lora_dir", jobs.lora_file(), "--lora_scale", "1.0"]),
        ("zero", ["--lora_dir", jobs.lora_file(), "--lora_scale", "0.0"]),
    ):
        assert run(generate.main, [*flags, *more, "--save_file", str(tmp_path / name)]) == 0
        videos.append(media_files.decoded_frames(tmp_path / f"{name}.mp4"))
    assert not np.array_equal(videos[0], videos[1]) and np.array_equal(videos[0], videos[2])


def test_a_lora_that_is_not_finite_is_told_before_anything_is_encoded(tmp_path, monkeypatch, capsys):
    broken = safetensors.torch.load_file(jobs.lora_file())
    next(iter(broken.values())).view(-1)[0] = torch.inf
    safetensors.torch.save_file(broken, tmp_path / "broken.safetensors")
    monkeypatch.setattr("wanvideo.engine.encoders.Encoders.embeds_of", None)
    flags = [*models(), *FAST, "--lora_dir", str(tmp_path / "broken.safetensors"), *job(tmp_path)]
    assert run(generate.main, flags) == 2
    assert "broken.safetensors has values that are not finite numbers in its changes of" in capsys.readouterr().err


def test_the_result_is_named_after_the_prompt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(generate.main, [*models(), *FAST, "--mode", "clip", *job(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.mp4")
    assert path.name.startswith("infinitetalk-14B_48x48_1_1_一个女人在说话_Qué_bien_")


# What is refused before a weight is read


@pytest.fixture
def refused(tmp_path, caplog, capsys):
    """Runs a command line that must fail; returns its message."""

    def refused(*flags, **changes):
        caplog.set_level(logging.INFO, logger="wanvideo")
        output = ["--save_file", str(tmp_path / "out")]
        arguments = [*models(), *FAST, *output, *job(tmp_path, **changes), *flags]
        assert run(generate.main, arguments) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") <= 3 and "Traceback" not in message
        assert not jobs.loads(caplog), "weights were read before the error"
        assert not list(tmp_path.glob("*.mp4")) and not list(tmp_path.glob(".*"))
        return message

    return refused


def tensors(path, shapes):
    state = {key: torch.zeros(shape, dtype=torch.bfloat16) for key, shape in shapes.items()}
    (torch.save if path.suffix == ".pth" else safetensors.torch.save_file)(state, str(path))
    return path


def copied(tmp_path):
    """A copy of the official set that a test may damage."""
    shutil.copytree(jobs.official(), tmp_path / "models")
    return tmp_path / "models"


class Evil:
    """Makes a file as soon as it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_missing_files(refused, tmp_path):
    nowhere = str(tmp_path / "nowhere.safetensors")
    for flag in ("--ckpt_dir", "--infinitetalk_dir", "--wav2vec_dir", "--dit_path", "--lora_dir"):
        assert "nowhere.safetensors" in refused(flag, nowhere), flag
    assert "no.json" in refused("--input_json", str(tmp_path / "no.json"))
    assert "no.png" in refused(cond_video=str(tmp_path / "no.png"))
    assert "no.wav" in refused(cond_audio={"person1": str(tmp_path / "no.wav")})


@pytest.mark.parametrize(
    "name",
    [
        f"{WAN}/diffusion_pytorch_model-00004-of-00007.safetensors",
        f"{WAN}/Wan2.1_VAE.pth",
        f"{WAN}/models_t5_umt5-xxl-enc-bf16.pth",
        f"{WAN}/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
        f"{SPEECH}/pytorch_model.bin",
        "InfiniteTalk/single/infinitetalk.safetensors",
    ],
    ids=["shard", "vae", "text", "clip", "speech", "adapter"],
)
def test_truncated_files(refused, tmp_path, name):
    folder = copied(tmp_path)
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert path.name in refused(*models(folder))


def test_a_missing_shard(refused, tmp_path):
    folder = copied(tmp_path)
    name = "diffusion_pytorch_model-00004-of-00007.safetensors"
    (folder / WAN / name).unlink()
    assert name in refused(*models(folder))


def test_a_pickle_with_code_in_it(refused, tmp_path):
    evil, fooled = Evil(tmp_path / "fooled"), tmp_path / "fooled"
    torch.save({"blocks.0.weight": torch.zeros(1), "x": evil}, tmp_path / "evil.pth")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(evil))
    for name in ("evil.pth", "plain.bin"):
        assert name in refused("--dit_path", str(tmp_path / name))
    assert not fooled.exists()
    pickle.loads((tmp_path / "plain.bin").read_bytes())
    assert fooled.exists(), "whoever unpickles it is fooled"


def test_wrong_models(refused, tmp_path):
    folder, single = jobs.official(), str(jobs.official() / "InfiniteTalk" / "single" / "infinitetalk.safetensors")
    assert "is a LoRA" in refused("--dit_path", jobs.lora_file())
    assert "is a LoRA" in refused("--infinitetalk_dir", jobs.lora_file())
    assert "adapter" in refused("--lora_dir", single)
    assert "adapter" in refused("--dit_path", single)
    assert "VAE" in refused("--infinitetalk_dir", str(folder / WAN / "Wan2.1_VAE.pth"))
    assert "transformer" in refused("--wav2vec_dir", str(folder / WAN))


def test_a_wan22_vae_and_a_siglip_encoder_are_named(refused, tmp_path):
    folder = copied(tmp_path)
    vae, clip = folder / WAN / "Wan2.1_VAE.pth", next((folder / WAN).glob("models_clip*"))
    whole = vae.read_bytes()
    nested = "decoder.upsamples.0.upsamples.0.residual.0.gamma"
    tensors(vae, {"conv1.weight": (96, 96, 1, 1, 1), "conv2.weight": (48, 48, 1, 1, 1), nested: (1024, 1, 1, 1)})
    message = refused(*models(folder))
    assert "Wan2.1_VAE.pth is a Wan2.2 VAE with 48" in message and "has no VAE" in message
    vae.write_bytes(whole)
    tensors(clip, {"vision_model.embeddings.position_embedding.weight": (729, 1152), "vision_model.head.probe": (1, 1)})
    message = refused(*models(folder))
    assert clip.name in message and "SigLIP" in message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--size", "833x480"], ["width 833", "832", "848"]),
        (["--frame_num", "80"], ["80", "77", "81"]),
        (["--motion_frame", "13"], ["13", "smaller than the window"]),
        (["--motion_frame", "17"], ["17", "smaller than the window"]),
        (["--scheduler", "deis"], ["deis", "dpm++"]),
        (["--device", "cuda:99"], ["cuda:99"]),
        (["--device", "gpu"], ["gpu"]),
    ],
    ids=lambda value: value[1] if value[0].startswith("--") else None,
)
def test_unusable_settings(refused, flags, words):
    message = refused(*flags)
    assert all(word in message for word in words), message


def test_unusable_jobs(refused, tmp_path):
    silent = str(media_files.wav(tmp_path / "silent.wav", np.zeros((16000, 1), np.float32), 16000))
    broken = str(media_files.wav(tmp_path / "nan.wav", np.full((16000, 1), np.nan, np.float32), 16000, "FLOAT"))
    empty = str(media_files.wav(tmp_path / "empty.wav", np.zeros((0, 1), np.float32), 16000))
    for path, word in ((silent, "silent"), (broken, "NaN"), (empty, "empty")):
        assert word in refused(cond_audio={"person1": path})
    assert "cond_vidio" in refused(cond_vidio="x.png")
    three = {f"person{n}": jobs.speech(tmp_path) for n in (1, 2, 3)}
    boxes = {f"person{n}": [0, 0, 40, 40] for n in (1, 2)}
    assert "person3" in refused(cond_audio=three, bbox=boxes, audio_type="para")


def test_unusable_places(refused, tmp_path):
    (tmp_path / "file.txt").write_text("not a folder")
    assert "cannot be written" in refused("--save_file", str(tmp_path / "file.txt" / "out"))
    assert "cannot be written" in refused("--save_file", "/proc/out")
    assert "more than 255 bytes" in refused("--save_file", str(tmp_path / ("long" * 70)))


def test_an_existing_video_is_kept_unless_asked(tmp_path, capsys):
    old = tmp_path / "old.mp4"
    old.write_bytes(b"someone's only copy")
    flags = [*models(), *FAST, "--mode", "clip", *job(tmp_path), "--save_file", str(old)]
    assert run(generate.main, flags) == 2
    assert "exists" in capsys.readouterr().err and old.read_bytes() == b"someone's only copy"
    assert run(generate.main, [*flags, "--overwrite"]) == 0
    assert probe(old).frames == 13


def test_speaker_without_region_among_three_is_refused():
    with pytest.raises(ValueError, match="3 speakers have 2 boxes or masks"):
        jobs.TalkRequest(("p",), "a.png", tuple(Speaker("a.wav", mask="m.png" if n else None) for n in range(3)))
