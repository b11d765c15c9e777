"""Graphs and templates with values of another kind are answered, and files of one name stay two."""

import copy
import json

import numpy as np
import pytest
from PIL import Image
from support import jobs
from support.exported import EXAMPLES, command_of

from wanvideo.cli.graphs.graph import read_graph
from wanvideo.cli.graphs.to_job import export
from wanvideo.cli.import_ import main as import_main
from wanvideo.errors import InputError
from wanvideo.video.picture import ORIENTATION

OPTIONS, SPEECH, SAMPLER = "WanVideoSourceOptions", "MultiTalkWav2VecEmbeds", "WanVideoSampler"


def changed(name, kind, **inputs):
    """A template in which a node's inputs are others."""
    graph = json.loads((EXAMPLES / "api" / f"{name}.json").read_text(encoding="utf-8"))
    next(node for node in graph.values() if node["class_type"] == kind)["inputs"].update(inputs)
    return graph


def exported(graph, folder, **where):
    (folder / "graph.json").write_text(json.dumps(graph))
    return export(read_graph(folder / "graph.json"), **where)


@pytest.mark.parametrize("emptied", ["", None])
def test_an_emptied_number_is_the_node_s_own(tmp_path, emptied):
    usual = exported(changed("08_dub_video", OPTIONS), tmp_path)
    names = ("crf", "camera_zoom", "reanchor", "camera_right")
    assert exported(changed("08_dub_video", OPTIONS, **dict.fromkeys(names, emptied)), tmp_path) == usual
    text = changed("08_dub_video", OPTIONS, crf="21")
    assert "21" in exported(text, tmp_path).flags


@pytest.mark.parametrize(
    "name, kind, wrong",
    [
        ("08_dub_video", OPTIONS, {"crf": {}}), ("08_dub_video", OPTIONS, {"reanchor": "often"}),
        ("01_talking_person", SAMPLER, {"cfg": []}), ("01_talking_person", SPEECH, {"audio_cfg_scale": "loud"}),
        ("01_talking_person", "WanVideoModelLoader", {"base_precision": {}}), ("00_quick_start", "WanVideoTalk",
                                                                                {"lora": 3}),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_told(tmp_path, name, kind, wrong):
    with pytest.raises(InputError, match=f"^{next(iter(wrong))} of {kind} "):
        exported(changed(name, kind, **wrong), tmp_path, models=str(jobs.comfy()))


@pytest.mark.parametrize("form, kind", [("", "type"), ("api/", "class_type")])
def test_a_node_whose_kind_is_no_text_is_no_obstacle(tmp_path, form, kind):
    graph = json.loads((EXAMPLES / f"{form}08_dub_video.json").read_text(encoding="utf-8"))
    nodes = graph["nodes"] if "nodes" in graph else graph.values()
    next(node for node in nodes if node[kind] == "MaskComposite")[kind] = 3
    assert exported(graph, tmp_path).notes == ("keep_mask of WanVideoSourceOptions (from 3)",)


def test_a_mask_that_is_missing_is_told(tmp_path):
    with pytest.raises(InputError, match="has 1 masks for 2 sounds. Connect a mask for each"):
        exported(changed("02_two_people_masks", SPEECH, mask_1=None), tmp_path)


def test_masks_of_one_name_are_two_pictures(tmp_path):
    graph = changed("02_two_people_masks", SPEECH, mask_1=["91", 0], mask_2=["92", 0])
    for number, folder in (("91", "a"), ("92", "b")):
        (tmp_path / folder).mkdir()
        levels = np.full((8, 8, 4), 255, np.uint8)
        levels[:, : int(number) - 88, 3] = 0
        Image.fromarray(levels).save(tmp_path / folder / "mask.png")
        graph[number] = {"class_type": "LoadImageMask", "inputs": {"image": f"{folder}/mask.png", "channel": "alpha"}}
    found = exported(graph, tmp_path, inputs=str(tmp_path), prefix=f"{tmp_path}/graph.")
    found.save_pictures()
    columns = [int((np.asarray(Image.open(path)) > 127).any(0).sum()) for path in found.job["mask"].values()]
    assert columns == [3, 4]
    assert exported(graph, tmp_path, inputs=str(tmp_path), prefix=f"{tmp_path}/graph.") == found


def test_a_channel_that_no_picture_has_is_said(tmp_path):
    graph = changed("02_two_people_masks", SPEECH, mask_1=["91", 0])
    graph["91"] = {"class_type": "LoadImageMask", "inputs": {"image": "mask.png", "channel": "/../../elsewhere"}}
    found = exported(graph, tmp_path)
    assert "mask_1 of MultiTalkWav2VecEmbeds (channel /../../elsewhere of LoadImageMask)" in found.notes
    assert "mask" not in found.job


def test_a_picture_that_comfyui_reads_otherwise_is_said(tmp_path):
    said = {}
    modes = {
        "a.jpg": "RGB",
        "b.jpg": "L",
        "c.jpg": "CMYK",
        "d.png": "L",
        "e.png": "I;16",
        "f.jpg": "RGB",
        "g.jpg": "RGB",
    }
    exif = Image.Exif()
    for name, mode in modes.items():
        exif[ORIENTATION] = {"f.jpg": 6, "g.jpg": 2}.get(name, 1)  # turned, and mirrored
        Image.new(mode, (8, 8)).save(tmp_path / name, exif=exif)
        found = exported(changed("01_talking_person", "LoadImage", image=name), tmp_path, inputs=str(tmp_path))
        said[name] = [note for note in found.notes if note.endswith("save it as an 8 bit PNG for both")]
    assert {name for name, notes in said.items() if notes} == {"b.jpg", "c.jpg", "e.png", "g.jpg"}


def test_what_a_graph_makes_of_a_file_is_said(tmp_path):
    graph = changed("01_talking_person", "WanVideoImageToVideoMultiTalk", start_image=["range", 0])
    loaded = {"video": "a.mp4", "force_rate": 25, "skip_first_frames": 0, "custom_width": ["number", 0]}
    graph |= {
        "range": {"class_type": "GetImageRangeFromBatch", "inputs": {"images": ["blur", 0], "start_index": 0}},
        "blur": {"class_type": "ImageBlur", "inputs": {"image": ["sized", 0], "radius": ["number", 0]}},
        "sized": {"class_type": "GetImageSizeAndCount", "inputs": {"image": ["load", 0]}},
        "load": {"class_type": "VHS_LoadVideo", "inputs": loaded},
        "number": {"class_type": "Anything", "inputs": {"value": 3}},
    }
    assert set(exported(graph, tmp_path).notes) == {
        "GetImageRangeFromBatch: the job follows the whole video, not some of its frames",
        "ImageBlur: what it makes of a file is not in the job; give the file as it leaves it",
        "force_rate of VHS_LoadVideo (25): the job has all of the file",
    }


@pytest.fixture
def command(tmp_path):
    return command_of(exported(changed("01_talking_person", SAMPLER), tmp_path), tmp_path)


def test_two_files_of_one_name_are_told(tmp_path, command):
    job = json.loads((tmp_path / "a.job.json").read_text())
    people = {"person1": "left/speech.wav", "person2": "right/speech.wav"}
    (tmp_path / "a.job.json").write_text(json.dumps(job | {"cond_audio": people, "audio_type": "para"}))
    with pytest.raises(InputError, match="left/speech.wav and .*right/speech.wav have one name"):
        import_main([*command, "--out", str(tmp_path / "again.json")])


def test_a_graph_names_the_file_of_a_model_whose_folder_is_named(tmp_path, command):
    folder = tmp_path / "chinese-wav2vec2-base"
    folder.mkdir()
    (folder / "pytorch_model.bin").touch()
    command[command.index("--wav2vec_dir") + 1] = str(folder)
    assert import_main([*command, "--out", str(tmp_path / "again.json")]) == 0
    (loader,) = read_graph(tmp_path / "again.json").of_kind("Wav2VecModelLoader")
    assert loader.inputs["model"] == "pytorch_model.bin"
    (folder / "fairseq.pt").touch()
    with pytest.raises(InputError, match="base is a folder with 2 files of models.*Name it with --wav2vec_dir"):
        import_main([*command, "--overwrite", "--out", str(tmp_path / "again.json")])


def test_a_template_of_another_form_is_told(tmp_path, command):
    out = ["--out", str(tmp_path / "again.json"), "--template"]
    with pytest.raises(InputError, match="of the template is no node of a queued graph"):
        import_main([*command, *out, str(EXAMPLES / "01_talking_person.json")])


def test_nodes_of_a_subgraph_are_no_obstacle(tmp_path, command):
    template = json.loads((EXAMPLES / "api" / "01_talking_person.json").read_text(encoding="utf-8"))
    inside = copy.deepcopy(template)
    (save,) = [key for key, node in inside.items() if node["class_type"] == "SaveVideo"]
    inside["2:1"] = inside.pop(save)
    (tmp_path / "template.json").write_text(json.dumps(inside))
    again = tmp_path / "again.json"
    assert import_main([*command, "--out", str(again), "--template", str(tmp_path / "template.json")]) == 0
    assert "2:1" in json.loads(again.read_text())
