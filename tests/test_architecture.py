"""The layout: who may import whom, and how large a module may grow."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
    {"geometry", "request", "errors", "protocols"},
]
LAYER = {package: -number for number, layer in enumerate(LAYERS) for package in layer}
# (who, whom): neighbours in one layer.
EXCEPTIONS = {
    ("__main__", "cli"),
    ("cli", "pipeline"),
    ("synthetic", "text"),
    ("request", "errors"),
    ("request", "geometry"),
    ("geometry", "errors"),
}
COMFY = {"comfy", "comfy_api", "folder_paths", "server", "nodes", "execution", "latent_preview"}
FILES = sorted(LIBRARY.rglob("*.py"))
NODE_FILES = [ROOT / "__init__.py", *sorted(ROOT.glob("nodes_*.py"))]


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


def test_only_one_file_of_the_pack_touches_comfyui():
    for path in NODE_FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0)
            for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        }
        touched = {name for name in names if name.split(".")[0] in COMFY}
        assert not touched or path.name == "nodes_common.py", f"{path.name} imports {touched}"


def test_nodes_stay_thin():
    assert (ROOT / "__init__.py").read_text(encoding="utf-8").count("\n") <= 60
    for path in NODE_FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= 50, f"{path.name}: {node.name} has {length} lines"


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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_modules_stay_small(path):
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= 500, "split this file"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 70, f"{node.name} has {length} lines"


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
    code = "import sys, wanvideo.geometry, wanvideo.request; assert not {'torch', 'numpy'} & set(sys.modules)"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert time.perf_counter() - start < 1.0
