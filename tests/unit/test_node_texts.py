"""Every node says what it does, in English and Chinese: names, tooltips and help pages, complete and no more."""

import json
import re
from pathlib import Path

import pytest
from support.pack import load_pack

ROOT = Path(__file__).resolve().parents[2]
PACK = load_pack()
# What only refuses a graph is in no menu and says everything in its answer.
NODES = {name: node for name, node in PACK.NODE_CLASS_MAPPINGS.items() if not getattr(node, "DEPRECATED", False)}
TEXTS = {
    language: json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    for language in ("en", "zh")
}
PAGES = ROOT / "wanvideo" / "web" / "docs"
CHINESE = re.compile("[\u4e00-\u9fff]")
BOTH = [(language, name) for language in TEXTS for name in NODES]


def inputs_of(name):
    types = NODES[name].INPUT_TYPES()
    return types["required"] | types["optional"]


@pytest.mark.parametrize("language", TEXTS)
def test_there_is_a_text_for_every_node_and_for_no_other(language):
    assert set(TEXTS[language]) == set(NODES)


@pytest.mark.parametrize("language, name", BOTH)
def test_a_node_names_and_explains_everything(language, name):
    text = TEXTS[language][name]
    assert text["display_name"] and text["description"]
    assert set(text["inputs"]) == set(inputs_of(name))
    assert list(text["outputs"]) == [str(index) for index in range(len(NODES[name].RETURN_TYPES))]
    for item, said in (text["inputs"] | text["outputs"]).items():
        assert said["name"].strip() and len(said["tooltip"]) >= (3 if language == "zh" else 9), item
        assert language != "zh" or CHINESE.search(said["tooltip"]), item
    if language == "zh":
        assert CHINESE.search(text["description"])


@pytest.mark.parametrize("name", NODES)
def test_the_node_itself_says_what_the_english_text_says(name):
    node, text = NODES[name], TEXTS["en"][name]
    assert PACK.NODE_DISPLAY_NAME_MAPPINGS[name] == text["display_name"]
    assert node.DESCRIPTION == text["description"]
    assert [spec[1]["tooltip"] for spec in inputs_of(name).values()] == [
        text["inputs"][item]["tooltip"] for item in inputs_of(name)
    ]
    assert all(isinstance(alias, str) and alias for alias in getattr(node, "SEARCH_ALIASES", []))


@pytest.mark.parametrize("language, name", BOTH)
def test_a_help_page_tells_of_every_input_and_output(language, name):
    page = (PAGES / name / f"{language}.md").read_text(encoding="utf-8")
    text = TEXTS[language][name]
    assert page.startswith(f"# {text['display_name']}\n")
    for item in (*inputs_of(name), *NODES[name].RETURN_NAMES):
        assert f"`{item}`" in page, item
    for said in (text["inputs"] | text["outputs"]).values():
        assert said["tooltip"].replace("|", "\\|").replace("\n", " ") in page, said["name"]


def test_there_is_no_page_for_a_node_that_is_not_there():
    assert {path.name for path in PAGES.iterdir()} == set(NODES)


def test_other_nodes_are_named_as_the_page_shows_them():
    titles = {text["display_name"] for text in TEXTS["zh"].values()}
    quoted = re.compile("\u201c(WanVideo [^\u201c\u201d]+)\u201d")
    for name, text in TEXTS["zh"].items():
        for said in (text, *text["inputs"].values(), *text["outputs"].values()):
            told = said.get("tooltip") or said["description"]
            assert set(quoted.findall(told)) <= titles, name
            others = (TEXTS["en"][other]["display_name"] for other in NODES if other != name)
            assert not [title for title in others if title not in titles and f" {title} " in f" {told} "], name


@pytest.mark.parametrize("name", NODES)
def test_the_nodes_that_english_texts_name_are_there(name):
    text, titles = TEXTS["en"][name], tuple(known["display_name"] for known in TEXTS["en"].values())
    for said in (*text["inputs"].values(), *text["outputs"].values()):
        for named in re.findall(r"from ((?:Load )?WanVideo(?: [A-Z]\w*)+)", said["tooltip"]):
            assert any(title.startswith(named) for title in titles), said["tooltip"]


def test_categories_have_chinese_names():
    categories = json.loads((ROOT / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))["nodeCategories"]
    parts = {part for node in NODES.values() for part in node.CATEGORY.split("/")}
    assert parts - set(categories) <= {"audio", "image", "loaders", "sampling"}, "ComfyUI translates these itself"
    assert set(categories) <= parts and all(CHINESE.search(said) for said in categories.values())
