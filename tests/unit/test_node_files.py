"""Widgets name files inside ComfyUI's folders and nothing else; what a file is, is told when a graph is queued."""

import sys

import pytest
from support.folders import comfy_folders
from support.pack import load_pack

from wanvideo.synthetic.models import make_models

NODES = load_pack().NODE_CLASS_MAPPINGS
files, common = (sys.modules[f"pack_under_test.{name}"] for name in ("nodes_files", "nodes_common"))
OUTSIDE = (
    "../secret.safetensors", "a/../../secret.safetensors", "..\\secret.safetensors", "C:\\secret.safetensors",
    "\\\\server\\share\\x.safetensors", "//server/share/x.safetensors", "C:secret.safetensors", "\\secret.safetensors",
)  # fmt: skip
UNREADABLE = ("a\nb.safetensors", "a\0b.safetensors", "\ud800.safetensors", 5, None, ["x"], {"a": 1})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make_models(folder, "tiny", "comfy")
    return folder


@pytest.fixture
def comfyui(models, tmp_path, monkeypatch):
    """ComfyUI's folders, with the models in them."""
    (tmp_path / "output").mkdir()
    monkeypatch.setattr(common, "folder_paths", comfy_folders(models, tmp_path))
    return models


def answer(kind, **names):
    return NODES[kind].VALIDATE_INPUTS(**names)


def vae_of(folder):
    return next((folder / "vae").glob("wan*.safetensors"))


def test_a_file_is_found_by_its_name_its_path_and_its_path_on_another_system(comfyui):
    vae = vae_of(comfyui)
    for name in (vae.name, f"some\\folder\\{vae.name}", f"some/folder/{vae.name}", str(vae)):
        assert answer("WanVideoVAELoader", model_name=name) is True
        assert files.VAES.find(name) == vae
    assert "is missing" in answer("WanVideoVAELoader", model_name="absent.safetensors")


def test_what_is_linked_or_missing_is_not_answered(comfyui):
    assert answer("WanVideoVAELoader", model_name=None) is True
    for node in NODES.values():
        if hasattr(node, "VALIDATE_INPUTS") and not getattr(node, "DEPRECATED", False):
            assert isinstance(node.VALIDATE_INPUTS(), bool | str)
    assert NODES["WanVideoVAELoader"].IS_CHANGED(model_name=None) == ""


def test_the_kind_of_a_file_is_told_from_its_header_and_once_for_each_state_of_it(comfyui, monkeypatch):
    vae = vae_of(comfyui)
    assert "vae" in answer("MultiTalkModelLoader", model=str(vae)).lower()
    (comfyui / "loras" / "vae.safetensors").write_bytes(vae.read_bytes())
    said = answer("WanVideoLoraSelect", lora="vae.safetensors")
    assert "vae.safetensors is a Wan2.1 VAE" in said
    opened = []
    real = files.open_checkpoint
    monkeypatch.setattr(files, "open_checkpoint", lambda *given: opened.append(given) or real(*given))
    files._check_kind.cache_clear()
    assert all(answer("WanVideoVAELoader", model_name=vae.name) is True for _ in range(3)) and len(opened) == 1
    (comfyui / "vae" / "cut.safetensors").write_bytes(vae.read_bytes()[:1000])
    assert "cut.safetensors" in answer("WanVideoVAELoader", model_name="cut.safetensors")


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_path_that_leads_out_is_refused_before_the_disk_is_asked(comfyui, name, monkeypatch):
    monkeypatch.setattr(files, "_is_file", lambda path: pytest.fail(f"{path} was looked for"))
    assert "leads out of the folders" in answer("WanVideoVAELoader", model_name=name)


def test_the_answer_tells_nothing_of_what_is_outside(comfyui, tmp_path):
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes(b"a secret that nobody is told")
    there, absent = (
        answer("WanVideoVAELoader", model_name=str(path)) for path in (secret, tmp_path / "absent.safetensors")
    )
    assert there.replace("secret", "absent") == absent and "a secret" not in there
    assert NODES["WanVideoVAELoader"].IS_CHANGED(model_name=str(secret)) == ""


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_file_name_is_answered(comfyui, name):
    assert name is None or "Choose" in (said := answer("WanVideoVAELoader", model_name=name)) or "Type it" in said


def test_links_count_where_comfyui_lists_them(comfyui, tmp_path, monkeypatch):
    elsewhere = tmp_path / "disk" / "vae.safetensors"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(vae_of(comfyui).read_bytes())
    (comfyui / "vae" / "linked.safetensors").symlink_to(elsewhere)
    assert answer("WanVideoVAELoader", model_name="linked.safetensors") is True
    monkeypatch.setattr(common.folder_paths, "get_filename_list", lambda folder: [])
    assert "is missing" in answer("WanVideoVAELoader", model_name="linked.safetensors")
    (comfyui / "vae" / "linked.safetensors").unlink()


@pytest.mark.parametrize("path", [*OUTSIDE, "link", "link/deep", "/tmp/away", "loop/x", *UNREADABLE[:3]])
def test_output_stays_in_the_output_folder(comfyui, tmp_path, path):
    output = tmp_path / "output"
    (output / "link").symlink_to(tmp_path)
    (output / "loop").symlink_to(output / "loop")
    with pytest.raises(files.OutputError, match="output_path"):
        files.folder_inside(path)
    assert "output_path" in answer("WanVideoImageToVideoMultiTalk", output_path=path, start_image=None)


def test_folders_inside_the_output_folder_are_named_as_any_system_does(comfyui, tmp_path):
    output = tmp_path / "output"
    assert files.folder_inside("  ") is None
    for path in ("a/b", "a\\b", " a/b ", str(output / "a" / "b")):
        assert files.folder_inside(path) == output / "a" / "b"
    assert files.folder_inside("我的视频 1") == output / "我的视频 1"
