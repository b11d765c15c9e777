"""The layout of the whole repository: who may import whom, how large files may grow, where modes may be told apart."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wanvideo.request import MODES

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "wanvideo"
# From what stands on everything to what stands on nothing; a package imports from the layers below its own.
LAYERS = [
    {"cli", "app", "live", "fleet", "pipeline", "__main__", "__init__"},
    {"engine"},
    {"runs", "sampling", "lora", "text", "synthetic", "presets", "quality"},
    {"checkpoints", "audio", "video"},
    {"parallel"},
    {"models", "memory"},
    {"ops"},
    {"request", "protocols"},
    {"job", "geometry", "keep"},
    {"prompts"},
    {"checks", "untrusted", "durable", "lock", "spool"},
    {"errors"},
]
LAYER = {package: -number for number, layer in enumerate(LAYERS) for package in layer}
# (who, whom): neighbors in one layer.
EXCEPTIONS = {
    ("__main__", "cli"),
    ("cli", "pipeline"),
    ("fleet", "pipeline"),
    ("cli", "fleet"),
    ("cli", "app"),  # the command that starts it
    ("app", "cli"),  # a form is read as the flags are
    ("app", "pipeline"),
    ("synthetic", "text"),
    ("video", "audio"),  # the one reader of sound
    ("lock", "durable"),  # how files are opened
    ("audio", "checkpoints"),  # a voice's file is read as models are
    ("quality", "sampling"),
    ("runs", "quality"),  # a run keeps what was measured
}
COMFY = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "server", "nodes", "execution", "latent_preview"}
OF_SERVER = {"nodes_prefixed.py": {"aiohttp"}}  # which ComfyUI's server is made of
FILES = sorted(LIBRARY.rglob("*.py"))
NODE_FILES = [ROOT / "__init__.py", *sorted(ROOT.glob("nodes_*.py"))]
PYTHON = sorted((*ROOT.glob("*.py"), *FILES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")))
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 500, 70
# A window's condition and what a request may name: nothing else asks which mode it is (see protocols.WindowCondition).
KNOW_MODES = {"wanvideo/sampling/conditions.py", "wanvideo/request.py"}


def in_repository(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions_of(tree: ast.AST):
    """(name, number of lines) of every function, methods and inner ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.end_lineno - node.lineno + 1


def package_of(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imports_of(path: Path):
    """(absolute module parts, line) of every import in a file; relative ones are resolved inside the library."""
    parent = ("wanvideo", *path.relative_to(LIBRARY).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((tuple(alias.name.split(".")), node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parent[: len(parent) - node.level + 1] if node.level else ()
            module = tuple(node.module.split(".")) if node.module else ()
            if base + module == ("wanvideo",):
                yield from (((*base, *module, alias.name), node.lineno) for alias in node.names)
            else:
                yield base + module, node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_imports_point_down(path):
    package, wrong = package_of(path), []
    assert package in LAYER, f"{package} has no layer"
    for parts, line in imports_of(path):
        if parts[0] in COMFY:
            wrong.append(f"line {line}: the library imports ComfyUI ({'.'.join(parts)})")
        if parts[0] == "wanvideo" and len(parts) > 1 and parts[1] in LAYER:
            target = parts[1]
            allowed = LAYER[target] < LAYER[package] or target == package or (package, target) in EXCEPTIONS
            if not allowed:
                wrong.append(f"line {line}: {package} imports {target}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", NODE_FILES, ids=in_repository)
def test_nodes_are_a_face_of_the_library(path):
    """They import each other, the library, and torch for its types; ComfyUI is the business of nodes_common alone."""
    wrong = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            inner = all(name.split(".")[0] == "wanvideo" or name.startswith("nodes_") for name in names)
            allowed = node.level == 1 and inner
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            packages = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"torch", "numpy"}
            allowed = packages <= (COMFY if path.name == "nodes_common.py" else OF_SERVER.get(path.name, set()))
        else:
            continue
        if not allowed:
            wrong.append(f"line {node.lineno}: {', '.join(names)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", NODE_FILES, ids=in_repository)
def test_nodes_stay_thin(path):
    """Widgets in, one call of the library, ComfyUI's types out: what tensors hold is not computed here."""
    source = path.read_text(encoding="utf-8")
    assert path.name != "__init__.py" or source.count("\n") <= 60
    long = [f"{name} has {length} lines" for name, length in functions_of(ast.parse(source)) if length > 50]
    assert not long, "\n".join(long)
    assert not re.search(r"nn\.functional|torch\.nn import .*functional", source), "torch.nn.functional"


def modes_told_apart(tree: ast.AST):
    """Lines that compare something with the name of a mode: `==`, `in (...)`, `case`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            sides = [node.value]
        else:
            continue
        inner = [item for side in sides for item in getattr(side, "elts", [side])]
        if any(isinstance(item, ast.Constant) and item.value in MODES for item in inner):
            yield node.lineno if isinstance(node, ast.Compare) else node.value.lineno


def test_modes_are_told_apart_in_one_place():
    wrong = [
        f"{in_repository(path)}:{line}"
        for path in (*FILES, *NODE_FILES)
        if in_repository(path) not in KNOW_MODES
        for line in modes_told_apart(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not wrong, "say it in the mode's WindowCondition: " + ", ".join(wrong)


def test_comparisons_with_modes_are_found():
    code = (
        "a = mode == 'infinitetalk'\n"
        "b = 'multitalk' != s.mode\n"
        "c = mode in ('multitalk', 'plain')\n"
        "match mode:\n    case 'infinitetalk':\n        pass\n"
        "d = {'infinitetalk': 1}[mode]\n"
        "e = mode == other\n"
    )
    assert sorted(modes_told_apart(ast.parse(code))) == [1, 2, 3, 5]


def test_library_imports_itself_relatively():
    """The pack is loaded under a name of ComfyUI's choosing, so an absolute `wanvideo` would be another copy."""
    absolute = [
        f"{path}:{node.lineno}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "wanvideo")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "wanvideo" for alias in node.names))
    ]
    assert not absolute


@pytest.mark.parametrize("path", [*PYTHON, *sorted(LIBRARY.rglob("*.cu"))], ids=in_repository)
def test_files_and_functions_stay_small(path):
    source = path.read_text(encoding="utf-8")
    lines = source.count("\n")
    assert lines <= MOST_LINES, f"{lines} lines: two things live in one room, split this file"
    functions = functions_of(ast.parse(source)) if path.suffix == ".py" else ()
    long = [f"{name} has {length} lines" for name, length in functions if length > MOST_LINES_OF_A_FUNCTION]
    assert not long, "\n".join(long)


def test_no_circles_between_files():
    graph = {}
    for path in FILES:
        name = ("wanvideo", *path.relative_to(LIBRARY).with_suffix("").parts)
        name = name[:-1] if name[-1] == "__init__" else name
        graph[name] = {parts for parts, _ in imports_of(path) if parts[0] == "wanvideo"} - {("wanvideo",)}
    known = set(graph)
    graph = {name: {t if t in known else t[:-1] for t in targets} & known for name, targets in graph.items()}
    done, trail = set(), []

    def visit(name):
        assert name not in trail, " -> ".join(".".join(n) for n in [*trail, name])
        if name not in done:
            trail.append(name)
            for target in graph[name] - {name}:
                visit(target)
            done.add(trail.pop())

    for name in graph:
        visit(name)


def test_the_lowest_layer_needs_no_torch():
    code = (
        "import sys, time, wanvideo.geometry, wanvideo.request; assert not {'torch', 'numpy'} & set(sys.modules); "
        "assert time.process_time() < 0.5"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_flags_are_judged_before_torch_is_loaded():
    """Help and wrong flags of the commands that people type most answer at once."""
    code = (
        "import contextlib, sys; from wanvideo.cli.main import main\n"
        "for arguments in (['generate', '--help'], ['generate', '--size', 'huge'],\n"
        "                  ['generate', '--input_json', 'none'],\n"
        "                  ['plan', '--help'], ['plan', '--attention', 'none'], ['download', '--help'], ['presets'],\n"
        "                  ['batch', '--help'], ['runs', '--help'], ['voices', '--help'], ['convert', '--help'],\n"
        "                  ['export', '--help'], ['import', '--help'], ['import', '--out', 'a', '--size', 'huge'],\n"
        "                  ['score', '--help'], ['doctor', '--help'], ['doctor', '--dri'], ['demo', '--help']):\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main(arguments)\n"
        "    assert not {'torch', 'av', 'PIL'} & set(sys.modules), arguments"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
