"""What the users' documents do before and around a video, as it is written there: installing, downloading, verifying,
the app and spoken text."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import time
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from support import clones, documents, jobs
from support.hub import Hub, running
from support.speech import install_kokoro

from wanvideo.app import server
from wanvideo.app.form import Form
from wanvideo.app.queue import ENDED, FINISHED
from wanvideo.checkpoints.sets import DOCUMENTS, SETS
from wanvideo.cli import app, doctor, download, generate
from wanvideo.cli.main import run
from wanvideo.synthetic.models import SPEECH, WAN
from wanvideo.video.reader import probe

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "--device cpu --dtype fp32 --size 64x48 --frame_num 5 --motion_frame 1 --max_frame_num 7 --sample_steps 2".split()
)


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory):
    return clones.downloaded(tmp_path_factory.mktemp("downloaded"))


def flags_of(script, folder):
    ((_, name, *arguments),) = documents.arguments_of(script, folder)
    return name, arguments


def published():
    """The repositories of the documents, with tiny models in them."""
    models, held = jobs.official(), {}
    for repository, folder in (("Wan-AI/Wan2.1-I2V-14B-480P", WAN), ("TencentGameMate/chinese-wav2vec2-base", SPEECH),
                               ("MeiGen-AI/InfiniteTalk", "InfiniteTalk")):  # fmt: skip
        for path in (models / folder).rglob("*"):
            if path.is_file():
                held[repository, path.relative_to(models / folder).as_posix()] = path.read_bytes()
    held["TencentGameMate/chinese-wav2vec2-base", "model.safetensors"] = b"a proposal"
    held["Kijai/WanVideo_comfy", "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors"] = Path(
        jobs.lora_file()
    ).read_bytes()
    return held


def fetched(line, folder, address):
    """What `huggingface-cli download` does with a line of the documents."""
    repository, *rest = shlex.split(line)
    at = next(place for place, word in enumerate(rest) if word.startswith("--"))
    options = dict(zip(rest[at::2], rest[at + 1 :: 2], strict=True))
    huggingface_hub.snapshot_download(
        repository, revision=options.get("--revision"), local_dir=folder / options["--local-dir"], endpoint=address,
        allow_patterns=rest[:at] or None,
    )  # fmt: skip


def test_what_the_download_commands_fetch_is_found_and_makes_a_video(tmp_path, monkeypatch, capsys):
    folder, hub = clones.clone(tmp_path), Hub(published())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with running(hub) as address:
        for line in documents.DOWNLOADS:
            fetched(line, folder, address)
    assert (folder / "weights/chinese-wav2vec2-base/model.safetensors").read_bytes() == b"a proposal"
    assert any("/revision/refs%2Fpr%2F1" in path for path in hub.listings)
    (folder / "weights/chinese-wav2vec2-base/model.safetensors").unlink()  # no model, in this test
    monkeypatch.chdir(folder)
    _, arguments = flags_of(documents.COMFYUI_EQUIVALENT, folder)
    at = arguments.index("--quant_dir")
    arguments[at : at + 2] = []  # the tiny set has no quantized transformer
    arguments[arguments.index("--lora_dir") + 1] = f"weights/{documents.DOWNLOADS[-1].split()[1]}"
    assert run(generate.main, [*arguments, *TINY, "--save_file", str(tmp_path / "talk")]) == 0, capsys.readouterr().err
    assert probe(tmp_path / "talk.mp4").frames == 7


def test_our_download_brings_the_same_files_to_the_same_places():
    ours = {file.local for name in DOCUMENTS["documents"] for file in SETS[name].files}
    for line in documents.DOWNLOADS:
        repository, *rest = line.split()
        place = rest[rest.index("--local-dir") + 1].removeprefix("./").removeprefix("weights").strip("/")
        here = [file for name in DOCUMENTS["documents"] for file in SETS[name].files if file.repository == repository]
        named = [word for word in rest[: rest.index("--local-dir")] if word.endswith(".safetensors")]
        assert here and {"/".join(filter(None, (place, name))) for name in named} <= ours, line
        assert named or all(file.local == f"{place}/{file.name}" for file in here if file.revision == "main"), line


def test_the_downloads_are_listed_without_a_connection(tmp_path, capsys):
    assert run(download.main, ["--set", "documents", "--dir", str(tmp_path), "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "infinitetalk_single_fp8.safetensors" in printed and re.search(r"[\d.]+ GB in all", printed)


def test_what_the_documents_install_goes_with_what_this_needs():
    """Packages that they pin or ask for; nothing of it excludes ours, and flash-attn is not needed."""
    block = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M | re.S)
    needed = {item.name: item for item in map(Requirement, re.findall(r'"([^"]+)"', block[1]))}
    pinned = Requirement(shlex.split(documents.INSTALLS[3])[0])
    assert any(pinned.specifier.contains(version) and needed["numpy"].specifier.contains(version)
               for version in ("1.26.4", "2.1.3"))  # fmt: skip
    assert "librosa" in needed and not any("flash" in name or "misaki" in name for name in needed)
    assert SpecifierSet(str(needed["librosa"].specifier)).contains("0.10.2")


def test_verification_is_one_command(downloaded, capsys):
    """nvidia-smi, free -h, "import flash_attn" and ls of the quantized file."""
    assert run(doctor.main, ["--dir", str(downloaded / "weights")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"GPU \d: |No GPU can be used: ", printed) and re.search(
        r"Memory: [\d.]+ GB of [\d.]+ GB", printed
    )
    assert re.search(r"^flash-attn +(\d|not installed)", printed, re.M)
    assert re.search(r"quant_models/infinitetalk_single_fp8.safetensors: .*transformer.*[kMG]B", printed)


def test_nvlink_is_said_by_the_same_command(capsys):
    """nvidia-smi nvlink -s, and the topology."""
    assert run(doctor.main, ["--json"]) == 0
    nvml = json.loads(capsys.readouterr().out)["machine"]["nvml"]
    assert "NVIDIA driver" in nvml or all("links" in gpu for gpu in nvml["gpus"])


def test_the_app_s_command_starts_it_or_names_gradio(downloaded, monkeypatch, tmp_path, capsys):
    name, arguments = flags_of(documents.APP, downloaded)
    assert name == "app.py" and "from wanvideo.cli.app import main" in (ROOT / name).read_text(encoding="utf-8")
    monkeypatch.chdir(downloaded)
    if importlib.util.find_spec("gradio") is None:
        assert run(app.main, arguments) == 2 and "pip install gradio" in capsys.readouterr().err
        monkeypatch.setattr(server, "check_installed", lambda: None)
    launched = []
    monkeypatch.setattr(server, "check_address", lambda host, port: None)
    monkeypatch.setattr(server, "launch", lambda studio, *rest: launched.append((video_of(studio), *rest)))
    assert run(app.main, [*arguments, *TINY, "--output_dir", str(tmp_path / "videos")]) == 0
    ((video, host, port, _),) = launched
    assert (host, port) == ("127.0.0.1", 8418) and probe(video).frames == 7


def video_of(studio):
    """What a user of the app gets who uploads a picture and a sound."""
    arriving = studio.uploads.arriving
    task = studio.submit(Form(jobs.picture(arriving), "She talks.", (jobs.speech(arriving, 0.9),)))
    until = time.monotonic() + 300
    while task.state not in ENDED and time.monotonic() < until:
        time.sleep(0.05)
    assert task.state == FINISHED, task.message
    return task.output


def test_spoken_text_makes_a_video_or_names_the_package(downloaded, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(downloaded)
    job = json.loads((ROOT / "examples/single_example_image.json").read_text(encoding="utf-8"))
    job |= {"cond_audio": {}, "tts_audio": {"text": "Hello there.", "human1_voice": "am_adam"}}
    (tmp_path / "job.json").write_text(json.dumps(job), encoding="utf-8")
    _, arguments = flags_of(documents.COMFYUI_EQUIVALENT, downloaded)
    arguments += ["--input_json", str(tmp_path / "job.json"), "--audio_mode", "tts", *TINY,
                  "--audio_save_dir", str(tmp_path / "spoken"), "--save_file", str(tmp_path / "talk")]  # fmt: skip
    if importlib.util.find_spec("kokoro") is None:
        assert run(generate.main, arguments) == 2 and "pip install kokoro" in capsys.readouterr().err
    install_kokoro(monkeypatch)
    assert run(generate.main, arguments) == 0
    assert probe(tmp_path / "talk.mp4").frames == 7 and list((tmp_path / "spoken").rglob("s1.wav"))


def test_scripts_may_be_made_executable(tmp_path):
    (tmp_path / "run_configs").mkdir()
    for path in (ROOT / "run_configs").glob("*.sh"):
        (tmp_path / "run_configs" / path.name).write_bytes(path.read_bytes())
    subprocess.run("chmod +x run_configs/*.sh", shell=True, cwd=tmp_path, check=True)
    assert all(os.access(path, os.X_OK) for path in (tmp_path / "run_configs").iterdir())
