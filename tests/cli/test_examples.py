"""What the scripts of run_configs/ and the users' documents run, as it is written there, with the models of
`make-models`; only paths, and the size of what is computed, are others."""

import shlex
import subprocess
from pathlib import Path

import pytest
from support import clones, documents, jobs

from wanvideo import TalkingVideoPipeline, TalkRequest
from wanvideo.app.server import with_models
from wanvideo.cli import generate
from wanvideo.cli.generate import read_engine
from wanvideo.cli.main import run
from wanvideo.presets import load_preset, preset_names
from wanvideo.video.reader import probe

ROOT = Path(__file__).resolve().parents[2]
# Two windows of a tiny picture, in what a CPU computes fast.
TINY = "--device cpu --dtype fp32 --size 64x48 --frame_num 5 --motion_frame 1 --max_frame_num 7".split()

COMFYUI_EQUIVALENT = documents.COMFYUI_EQUIVALENT.replace("\\\n", " ").partition("python ")[2]
RTX_4090 = """generate_infinitetalk.py
    --ckpt_dir weights/Wan2.1-I2V-14B-480P
    --wav2vec_dir weights/chinese-wav2vec2-base
    --infinitetalk_dir weights/InfiniteTalk/single/infinitetalk.safetensors
    --input_json examples/ejemplo_espanol.json
    --size infinitetalk-480
    --sample_steps 40
    --mode streaming
    --quant fp8
    --quant_dir weights/InfiniteTalk/quant_models/infinitetalk_single_fp8.safetensors
    --motion_frame 9
    --num_persistent_param_in_dit 0
    --save_file infinitetalk_res_4090"""
APP = """app.py
    --ckpt_dir weights/Wan2.1-I2V-14B-480P
    --wav2vec_dir weights/chinese-wav2vec2-base
    --infinitetalk_dir weights/InfiniteTalk/single/infinitetalk.safetensors
    --quant fp8
    --quant_dir weights/InfiniteTalk/quant_models/infinitetalk_single_fp8.safetensors
    --num_persistent_param_in_dit 0
    --motion_frame 9"""
# Options that the documents add to a command.
ADVICE = {
    "teacache": "--use_teacache --teacache_thresh 0.2 --sample_steps 8",
    "apg": "--use_apg --apg_momentum -0.75 --apg_norm_threshold 55",
    "less_memory": "--num_persistent_param_in_dit 0 --t5_cpu true --offload_model true",
    "lip_sync": "--sample_audio_guide_scale 3.0 --sample_shift 12.0",
    "calmer": "--color_correction_strength 0.8",
    "details": "--sample_steps 8 --sample_text_guide_scale 2.0",
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder as a clone of the repository is, with the output of `make-models` in weights/."""
    folder = clones.clone(tmp_path_factory.mktemp("clone"))
    (folder / "weights").symlink_to(jobs.official())
    return folder


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory):
    return clones.downloaded(tmp_path_factory.mktemp("downloaded"))


@pytest.fixture
def made(tmp_path, monkeypatch, capsys):
    """Runs a command of a document in a clone."""

    def made(folder, arguments):
        monkeypatch.chdir(folder)
        assert arguments[0] == "generate_infinitetalk.py"
        assert run(generate.main, [*arguments[1:], *TINY, "--save_file", str(tmp_path / "talk")]) == 0
        assert capsys.readouterr().out.strip() == str(tmp_path / "talk.mp4")
        info = probe(tmp_path / "talk.mp4")
        assert info.frames == 7 and (info.width, info.height) == (64, 48) and info.audio_channels == 1

    return made


def script(folder, name):
    """What a script starts Python with; what is added to it reaches the program."""
    command = ["bash", str(folder / "run_configs" / f"{name}.sh"), "--overwrite"]
    done = subprocess.run(
        command, env={"PYTHON": "echo", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    arguments = shlex.split(done.stdout)
    assert arguments[-1] == "--overwrite"
    return arguments


@pytest.mark.parametrize("name", preset_names())
def test_scripts_make_a_video(made, clone, name):
    made(clone, script(clone, name))


def test_a_script_makes_a_video_with_what_is_downloaded_for_it(made, downloaded, caplog):
    jobs.capture_log(caplog)
    made(downloaded, script(downloaded, "02_comfyui_equivalent"))
    assert any("infinitetalk_single_fp8.safetensors" in line for line in jobs.loads(caplog))
    assert any("t5_fp8.safetensors" in line for line in jobs.loads(caplog))


@pytest.mark.parametrize("command", [COMFYUI_EQUIVALENT, RTX_4090], ids=["comfyui_equivalent", "rtx_4090"])
def test_commands_of_the_documents_make_a_video(made, downloaded, command):
    made(downloaded, command.split())


def test_the_app_of_the_documents_finds_its_models(downloaded, monkeypatch):
    monkeypatch.chdir(downloaded)
    files, options = read_engine(with_models([*APP.split()[1:], "--device", "cpu"]), "app.py")
    pipeline = TalkingVideoPipeline(files, options)
    assert "infinitetalk_single_fp8.safetensors" in str(pipeline.named)


@pytest.mark.parametrize("options", ADVICE.values(), ids=ADVICE)
def test_options_that_the_documents_advise_make_a_video(made, downloaded, options):
    made(downloaded, [*COMFYUI_EQUIVALENT.split(), *options.split()])


def test_four_steps_of_a_distilled_lora_need_no_scheduler(downloaded, monkeypatch):
    monkeypatch.chdir(downloaded)
    job = generate.read_job(COMFYUI_EQUIVALENT.split()[1:])
    settings = job.request.settings
    assert (settings.scheduler, settings.steps, settings.shift) == ("flowmatch_distill", 4, 11.0)
    preset = load_preset("02_comfyui_equivalent").settings
    assert (settings.scheduler, settings.steps, settings.shift) == (preset.scheduler, preset.steps, preset.shift)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.json")), ids=lambda path: path.stem)
def test_examples_are_jobs_over_files_that_are_there(path):
    request = TalkRequest.from_job(str(path))
    named = [request.reference, *(speaker.audio for speaker in request.speakers)]
    assert request.has_speech and all((ROOT / name).is_file() for name in named)


@pytest.mark.parametrize("name", ["multi_example_image", "single_example_video"])
def test_other_examples_make_a_video(made, clone, name):
    flags = ["--preset", "01_ultra_fast", "--mode", "streaming"]
    made(clone, ["generate_infinitetalk.py", *flags, "--input_json", f"examples/{name}.json"])
