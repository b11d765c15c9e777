"""Job -> graph -> job is the same request for every flag and key; what has no counterpart is named."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support import jobs, media_files
from support.exported import EXAMPLES, command_of
from support.pack import load_pack

from wanvideo.cli.flags import build_parser
from wanvideo.cli.generate import read_job
from wanvideo.cli.graphs.counterparts import COUNTERPARTS
from wanvideo.cli.graphs.graph import read_graph
from wanvideo.cli.graphs.to_job import export
from wanvideo.cli.graphs.widgets import CONTROL, WIDGETS
from wanvideo.cli.import_ import main as import_main
from wanvideo.job import KEYS

load_pack()
REGISTERED = sys.modules["pack_under_test.nodes_all"]
# Values of flags that a graph has, each another one than the usual.
FLAGS = {
    "task": ["multitalk-14B"], "size": ["640x480"], "mode": ["clip"], "frame_num": ["61"], "max_frame_num": ["50"],
    "fps": ["24"], "motion_frame": ["13"], "base_seed": ["7"], "scene_seg": ["true"], "dub": ["auto"],
    "dub_feather": ["5", "--dub", "input/mask.png"], "source_end": ["ping-pong"], "camera": ["1.25"],
    "camera_pan": ["0.5", "-0.25", "--camera", "1.1"], "camera_period": ["12.5", "--camera", "1.1"],
    "reanchor": ["3"], "normalize_loudness": ["false"], "scheduler": ["unipc"], "sample_steps": ["9"],
    "sample_shift": ["3.7"], "sample_text_guide_scale": ["2.3"],
    "sample_audio_guide_scale": ["3.1", "--sample_text_guide_scale", "1.7"], "audio_scale": ["1.3"],
    "use_teacache": [], "teacache_thresh": ["0.33", "--use_teacache"], "use_apg": [],
    "apg_momentum": ["0.25", "--use_apg"], "apg_norm_threshold": ["3.5", "--use_apg"], "color_match": ["mkl"],
    "color_correction_strength": ["0.35"], "crf": ["11"], "dtype": ["fp32"], "t5_cpu": [], "quant": ["fp4"],
    "blocks_to_swap": ["30"], "num_persistent_param_in_dit": ["0"], "attention": ["sdpa"], "compile": ["max-autotune"],
    "tiled_vae": ["true"], "infinitetalk_dir": ["models/diffusion_models/other.safetensors"],
    "wav2vec_dir": ["models/wav2vec2/other.safetensors"], "dit_path": ["models/diffusion_models/it.gguf"],
    "vae_path": ["models/vae/other.safetensors"], "t5_path": ["models/text_encoders/sub/other.safetensors"],
    "clip_path": ["models/clip_vision/other.safetensors"],
    "lora_dir": ["models/loras/a.safetensors", "models/loras/b.safetensors"], "lora_scale": ["0.123456789"],
}  # fmt: skip
# What `import` says of flags that a graph has not.
SAID = {
    "voice_activity": ([], "--voice_activity: no node"), "device": (["cpu"], "--device cpu"),
    "parallel": (["auto"], "--parallel, --ulysses_size"), "dit_fsdp": ([], "--parallel, --ulysses_size"),
}  # fmt: skip
# Flags that say where files are, which come as --dit_path and its like, or what only a command does.
OF_THE_COMMAND = {
    "help", "preset", "input_json", "save_file", "overwrite", "resume", "audio_save_dir", "audio_mode", "offload_model",
    "ckpt_dir", "quant_dir", "t5_fsdp", "ulysses_size", "ring_size",
}  # fmt: skip
PEOPLE = {"person1": "input/a.wav", "person2": "input/b.wav"}
BOXES = {"person1": [20, 10, 130, 90], "person2": [20, 110, 130, 190]}
JOBS = {
    "prompt": {"prompt": [{"from": 0, "prompt": "She waits."}, {"from": 2.53125, "prompt": "She talks."}]},
    "negative_prompt": {"negative_prompt": "blurry"},
    "cond_video": {"cond_video": "input/source.mp4"},
    "cond_image": {"cond_video": None, "cond_image": "input/face.jpg"},
    "cond_audio": {"cond_audio": {**PEOPLE, "person2": "None"}, "audio_type": "para"},
    "audio_type": {"cond_audio": PEOPLE, "audio_type": "para"},
    "bbox": {"cond_audio": PEOPLE, "audio_type": "add", "bbox": BOXES},
    "mask": {"cond_audio": PEOPLE, "audio_type": "add", "mask": {"person1": "input/1.png", "person2": "input/2.png"}},
    "keep": {"cond_video": "input/source.mp4", "keep": {"mask": "input/mouth.mp4", "feather": 3}},
    "camera": {"camera": {"zoom": 1.2, "pan": [0.25, -0.5], "period_s": 8}},
    "reanchor": {"reanchor": 4},
}
SPOKEN_OR_UNUSED = {"tts_audio", "video_audio"}


@pytest.fixture
def base(tmp_path):
    """Flags of template 01, whose files are nowhere."""
    return command_of(export(read_graph(EXAMPLES / "api" / "01_talking_person.json")), tmp_path)


def there_and_back(command, folder):
    assert import_main([*command, "--out", str(folder / "graph.json")]) == 0
    again = folder / "again"
    again.mkdir()
    exported = export(read_graph(folder / "graph.json"))
    return read_job(command), read_job(command_of(exported, again)), exported.notes


def assert_same(there, back):
    assert replace(back.request, output=None) == replace(there.request, output=None)
    assert (back.files, back.options) == (there.files, there.options)


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_comes_back(name, base, tmp_path):
    command = [*base, f"--{name}", *FLAGS[name]]
    there, back, _ = there_and_back(command, tmp_path)
    plain = read_job(base)
    assert_same(there, back)
    assert (there.request.settings, there.request, there.files, there.options) != (
        plain.request.settings, plain.request, plain.files, plain.options
    )  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_a_flag_that_no_graph_has_is_named(name, base, tmp_path, capsys):
    values, said = SAID[name]
    assert import_main([*base, f"--{name}", *values, "--out", str(tmp_path / "graph.json")]) == 0
    assert f"no counterpart: {said}" in capsys.readouterr().out


@pytest.mark.parametrize("name", JOBS)
def test_a_key_of_a_job_comes_back(name, base, tmp_path):
    file = tmp_path / "a.job.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | JOBS[name]))
    there, back, _ = there_and_back(base, tmp_path)
    assert_same(there, back)


def test_every_flag_and_key_is_among_these():
    flags = {action.dest for action in build_parser("generate")._actions}
    assert flags == FLAGS.keys() | SAID.keys() | OF_THE_COMMAND
    assert set(KEYS) == JOBS.keys() | SPOKEN_OR_UNUSED


def test_every_node_has_a_counterpart_or_is_named():
    assert {node.__name__ for node in REGISTERED.NODES} == set(COUNTERPARTS)
    for kind, why in COUNTERPARTS.items():
        assert not why or (len(why) > 20 and not why.endswith(".")), kind


def test_a_node_without_a_counterpart_is_named_where_a_graph_has_it(tmp_path):
    graph = json.loads((EXAMPLES / "api" / "01_talking_person.json").read_text())
    (sampler,) = [node["inputs"] for node in graph.values() if node["class_type"] == "WanVideoSampler"]
    named = {kind: why for kind, why in COUNTERPARTS.items() if why}
    for number, kind in enumerate(named, 100):
        graph[str(number)] = {"class_type": kind, "inputs": {}}
        sampler[f"socket_{number}"] = [str(number), 0]
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    notes = export(read_graph(tmp_path / "graph.json")).notes
    assert {f"{kind}: {why}" for kind, why in named.items()} <= set(notes)


def test_values_of_our_nodes_are_named_in_the_order_in_which_the_page_stores_them():
    for node in REGISTERED.NODES:
        inputs = (node.REQUIRED | node.OPTIONAL).items()
        own = [name for name, spec in inputs if not isinstance(spec, tuple) or _is_widget(spec[0])]
        known = [name for name in WIDGETS.get(node.__name__, own) if name != CONTROL]
        assert own[: len(known)] == known, node.__name__
        assert (CONTROL in WIDGETS.get(node.__name__, ())) == ("seed" in own), node.__name__


def _is_widget(kind):
    return isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN")


def test_a_picture_mask_and_a_moving_one_are_told_apart_by_what_they_are(base, tmp_path):
    moving = Path(media_files.video(tmp_path / "mask.mp4", media_files.numbered_frames(4, 32, 32)))
    moving = moving.rename(tmp_path / "mask.dat")
    for mask, kind in ((str(moving), "LoadVideo"), (jobs.picture(tmp_path), "LoadImageMask")):
        assert import_main([*base, "--dub", mask, "--overwrite", "--out", str(tmp_path / "graph.json")]) == 0
        assert read_graph(tmp_path / "graph.json").of_kind(kind)
