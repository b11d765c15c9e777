"""What nodes answer in Chinese: every message that a graph can meet has a translation with the same values."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest
from support.pack import load_pack

load_pack()
messages, common = (sys.modules[f"pack_under_test.{name}"] for name in ("nodes_messages", "nodes_common"))
ROOT = Path(__file__).resolve().parents[2]
TABLES = json.loads((ROOT / "locales" / "zh" / "errors.json").read_text(encoding="utf-8"))
TABLE = TABLES["messages"] | TABLES["phrases"]
CHINESE = re.compile("[\u4e00-\u9fff]")
FIELD = re.compile(r"\{\d+\}")
LOGGED = re.compile(r"%[.\d]*[sdfg]")  # values of a warning
ERRORS = {"TalkError", "InputError", "CheckpointError", "OutputError", "ResumeError", "UnsupportedError", "error"}
# What no graph reaches: other faces, and what only scripts call.
OTHER_FACES = {
    "cli", "app", "live", "fleet", "parallel", "pipeline.py", "__main__.py", "synthetic", "presets", "convert.py"
}  # fmt: skip


def message_of(node):
    """An expression's text with {} for every value in it; None where it is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return f"{message_of(node.left) or '{}'}{message_of(node.right) or '{}'}"
    return None


def raised(path):
    """The messages that a file raises, with {} for every value."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            if isinstance(node.exc.func, ast.Name) and node.exc.func.id in ERRORS:
                message = message_of(node.exc.args[0])
                if message is not None and re.search("[a-z]{3}", message):
                    yield message


def reachable():
    files = [*sorted(ROOT.glob("nodes_*.py")), *sorted((ROOT / "wanvideo").rglob("*.py"))]
    names = {path: path.relative_to(ROOT).parts for path in files}
    return {
        message: path.relative_to(ROOT).as_posix()
        for path in files
        if not OTHER_FACES & set(names[path])
        for message in raised(path)
    }


def test_messages_that_graphs_meet_have_a_translation():
    known = {FIELD.sub("{}", template) for template in TABLES["messages"]}
    missing = {message: file for message, file in reachable().items() if message not in known}
    listed = "\n".join(f"{file}: {message!r}" for message, file in missing.items())
    assert not missing, f"{len(missing)} messages without Chinese:\n{listed}"


def test_no_translation_is_of_a_message_that_is_gone():
    said = set(reachable())
    gone = [template for template in TABLES["messages"] if FIELD.sub("{}", template) not in said]
    assert not gone, "\n".join(gone)


def test_no_phrase_is_of_a_text_that_is_gone():
    files = [*ROOT.glob("nodes_*.py"), *(ROOT / "wanvideo").rglob("*.py")]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    texts = {LOGGED.sub("{}", text) for node in nodes if isinstance(node, ast.expr) and (text := message_of(node))}
    said = "\n".join(texts)
    gone = [phrase for phrase in TABLES["phrases"] if FIELD.sub("{}", phrase).strip() not in said]
    assert not gone, "\n".join(gone)


@pytest.mark.parametrize("template", TABLE)
def test_a_translation_is_chinese_and_keeps_every_value(template):
    theirs = TABLE[template]
    assert CHINESE.search(theirs)
    assert sorted(set(FIELD.findall(template))) == sorted(set(FIELD.findall(theirs)))
    assert FIELD.findall(template) == [f"{{{number}}}" for number in range(len(FIELD.findall(template)))]
    values = [f"<{number}>" for number in range(len(FIELD.findall(template)))]
    assert messages.translate(messages._filled(template, values), "zh") == messages._filled(theirs, values)


def test_what_has_no_translation_stays_as_it_is():
    assert messages.translate("Nobody ever says this.", "zh") == "Nobody ever says this."
    assert messages.translate("width 100 is not usable", "en") == "width 100 is not usable"


def test_the_language_is_the_one_chosen_in_the_page(tmp_path, monkeypatch):
    assert common.page_language() == "en"
    monkeypatch.setattr(common, "folder_paths", type("Paths", (), {"get_user_directory": lambda: str(tmp_path)}))
    assert common.page_language() == "en"
    settings = tmp_path / "default" / "comfy.settings.json"
    settings.parent.mkdir()
    for text, language in (
        ('{"Comfy.Locale": "zh"}', "zh"),
        ('{"Comfy.Locale": ["zh"]}', "en"),
        ("{", "en"),
        ("[]", "en"),
    ):
        settings.write_text(text, encoding="utf-8")
        assert common.page_language() == language
