"""What the documents say is what the program does."""

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

import wanvideo
from wanvideo.cli.flags import build_parser
from wanvideo.cli.main import COMMANDS
from wanvideo.request import TalkRequest

ROOT = Path(__file__).resolve().parents[2]
READMES = ("README.md", "README_zh.md")
LANGUAGES = ("", "_zh")
# In both languages.
PAGES = ("README", "docs/command_line", "docs/nodes", "docs/troubleshooting", "docs/formats", "docs/choosing")
MOST_LINES = 300  # of a README
INSTALL_AND_RUN = "pip install -e . && python -m wanvideo demo"
INSTALL_AND_TEST = 'pip install -e ".[test]" && pytest -n auto'


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def page(language, *names):
    """The text of pages in a language."""
    return "\n".join(text_of(f"{name}{language}.md") for name in names)


def blocks(name, language):
    return re.findall(rf"```{language}\n(.*?)```", text_of(name), re.S)


@pytest.mark.parametrize("name", READMES)
def test_a_fresh_machine_needs_two_commands_and_ci_runs_one_of_them(name):
    installs = [line for block in blocks(name, "sh") for line in block.splitlines() if "pip install" in line]
    assert installs == [INSTALL_AND_RUN, INSTALL_AND_TEST]
    assert INSTALL_AND_TEST in text_of(".ci/run")


def test_both_languages_have_the_same_pages_in_the_same_order():
    for name in PAGES:
        levels = [re.findall(r"^(#+) ", page(language, name), re.M) for language in LANGUAGES]
        tables = [len(re.findall(r"^\|(?: ?-+ ?\|)+$", page(language, name), re.M)) for language in LANGUAGES]
        assert levels[0] == levels[1] and tables[0] == tables[1], name


@pytest.mark.parametrize("name", READMES)
def test_a_readme_is_short_and_begins_with_what_a_newcomer_needs(name):
    text = text_of(name)
    assert text.count("\n") < MOST_LINES and text.index("![") < text.index("\n## ")
    wanted = [
        "pip install -e . ",
        "wan-talking-video*",
        "python -m wanvideo download --preset",
        "run_configs/",
        "```json",
    ]
    places = [text.index(words) for words in (*wanted, "huggingface.co", "TalkingVideoPipeline")]
    assert places == sorted(places)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_flag_and_command_is_named(language):
    text = page(language, "README", "docs/command_line")
    flags = [option for action in build_parser("generate")._actions for option in action.option_strings]
    missing = [flag for flag in flags if f"`{flag}" not in text and flag not in ("-h", "--help")]
    assert not missing
    assert not [command for command in COMMANDS if f"python -m wanvideo {command}" not in text]


@pytest.mark.parametrize("language", LANGUAGES)
def test_flags_in_the_documents_exist(language):
    known = set(build_parser("generate")._option_string_actions) | {
        "--two",
        "--out",
        "--layout",
        "--nproc_per_node",
        "--preview",
        "--host",
        "--port",
        "--output_dir",
        "--max_upload_mb",
        "--table",
        "--price",
        "--models",
        "--memory_gb",
        "--gpu",
        "--audio",
        "--syncnet",
        "--cpu",  # of ComfyUI
    }
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z_0-9]+", page(language, *PAGES)))
    assert used <= known, used - known


@pytest.mark.parametrize("language", LANGUAGES)
def test_commands_of_the_documents_are_commands(language):
    scripts = [block for name in PAGES for block in blocks(f"{name}{language}.md", "sh")]
    commands = [
        shlex.split(block.replace("\\\n", " ")) for block in scripts if block.startswith("python -m wanvideo generate")
    ]
    assert len(commands) == 4
    for command in commands:
        build_parser("generate").parse_args(command[4:])


def test_the_spanish_quick_start_runs():
    scripts = "\n".join(blocks("README_es.md", "sh")).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in scripts if line.startswith("python -m wanvideo generate")]
    assert len(commands) == 1 and INSTALL_AND_RUN in scripts
    build_parser("generate").parse_args(commands[0][4:])
    (job,) = blocks("README_es.md", "json")
    assert len(TalkRequest.from_job(json.loads(job)).speakers) == 1
    assert all("(README_es.md)" in text_of(name) for name in READMES)


@pytest.mark.parametrize("name", READMES)
def test_job_examples_are_jobs(name):
    pages = (name, f"docs/command_line{name.removeprefix('README')}")
    jobs = [json.loads(block) for page in pages for block in blocks(page, "json")]
    assert [len(TalkRequest.from_job(job).speakers) for job in jobs] == [1, 1, 2]


@pytest.mark.parametrize("name", READMES)
def test_the_python_example_uses_names_that_exist(name, tmp_path):
    (example,) = blocks(name, "python")
    before, after = example.split("pipeline.generate(")
    script = tmp_path / "example.py"
    script.write_text(before.replace("pipeline = TalkingVideoPipeline(", "files = ("), encoding="utf-8")
    names = runpy.run_path(str(script))
    assert names["files"].adapter.endswith("infinitetalk.safetensors") and names["request"].seed == 42
    assert callable(wanvideo.TalkingVideoPipeline.run) and "window.frames" in after


@pytest.mark.parametrize("language", LANGUAGES)
def test_error_texts_of_the_troubleshooting_table_are_those_of_the_program(language):
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "wanvideo").rglob("*.py"))
    said = re.sub(r'"\s*\n\s*f?"', "", source)  # adjacent literals are one text
    said = re.sub(r"\{[^{}]*\}", "{}", said)
    table = page(language, "docs/troubleshooting").split("|---|---|")
    rows = [row for part in table for row in re.findall(r"^\| `([A-Z]?[^`|]+)`", part, re.M)]
    messages = [row for row in rows if " " in row and not row.startswith(("python", "--", "Wan", "device", "CUDA"))]
    assert len(messages) >= 12
    wrong = [message for message in messages if re.sub(r"\b16\b", "{}", message) not in said and message not in said]
    assert not wrong


@pytest.mark.parametrize("path", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    wanted = re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text(encoding="utf-8"))
    assert not [link for link in wanted if not (path.parent / link).exists()]


PLACES = re.compile(
    r"`((?:wanvideo|tests|benchmarks|docs|engine|sampling|ops|memory|video|audio|checkpoints|models|cli|app)/[\w/.]+)`"
)
THEIRS = "wanvideo/modules/"  # of another program: docs/architecture.md says where those files' contents are here


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md", "docs/kernels.md"])
def test_files_that_are_named_exist(name):
    named = [path for path in PLACES.findall(text_of(name)) if not path.startswith(THEIRS)]
    assert not [path for path in named if not ((ROOT / path).exists() or (ROOT / "wanvideo" / path).exists())]


def test_the_changelog_has_this_version():
    assert f"## {wanvideo.__version__}" in text_of("CHANGELOG.md")
