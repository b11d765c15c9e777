"""What the ComfyUI registry gets: all that a user of the nodes needs, and nothing that only a developer does."""

import json
import re

import pytest
from support.comfy_server import REPOSITORY, pack_files

FOLDERS = {"docs", "example_workflows", "locales", "run_configs", "subgraphs", "wanvideo"}
DEVELOPERS = {"CONTRIBUTING.md"}  # linked for those who have the repository
MOST_BYTES = 4 << 20


@pytest.fixture(scope="module")
def packed():
    return pack_files(REPOSITORY)


def test_folders_and_files_of_developers_are_left_out(packed):
    assert {file.parts[0] for file in packed if len(file.parts) > 1} == FOLDERS
    top = {file.name for file in packed if len(file.parts) == 1}
    assert {"__init__.py", "pyproject.toml", "requirements.txt", "README.md", "README_zh.md", "LICENSE"} <= top
    assert not {name for name in top if name.startswith(".")} | (top & DEVELOPERS)
    assert sum((REPOSITORY / file).stat().st_size for file in packed) < MOST_BYTES


@pytest.mark.parametrize("readme", ["README.md", "README_zh.md"])
def test_what_the_readme_links_is_in_it(packed, readme):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (REPOSITORY / readme).read_text(encoding="utf-8"))
    assert links
    names = {file.as_posix() for file in packed} | FOLDERS | DEVELOPERS
    assert {link.rstrip("/") for link in links} <= names


def test_templates_keep_their_seed(packed):
    """With another one the page would not go on with a run that was interrupted, but begin anew."""
    graphs = [
        file for file in packed if file.parent.name in ("example_workflows", "subgraphs") and file.suffix == ".json"
    ]
    assert len(graphs) >= 10
    for file in graphs:
        graph = json.loads((REPOSITORY / file).read_text(encoding="utf-8"))
        inner = (node for item in graph.get("definitions", {}).get("subgraphs", ()) for node in item["nodes"])
        values = [value for node in (*graph["nodes"], *inner) for value in node["widgets_values"]]
        assert "fixed" in values and "randomize" not in values, file


def test_what_the_nodes_need_is_among_what_the_library_needs():
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    lines = (line.split("#")[0].strip() for line in (REPOSITORY / "requirements.txt").read_text().splitlines())
    for requirement in filter(None, lines):
        assert f'"{requirement}",' in project
