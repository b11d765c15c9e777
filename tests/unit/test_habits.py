"""What keeps the repository in order: one version of each tool, reasons beside exceptions, a folder of any name."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PIN = re.compile(r"\b([a-z][a-z-]*)(?:\[\w+\])?==([\d.]+)")


def test_tools_have_one_version():
    """`.ci/run` and the workflow install the extra `dev`; pre-commit names its packages itself."""
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pinned = dict(PIN.findall(re.search(r"^dev = \[(.*?)\]$", settings, re.MULTILINE | re.DOTALL)[1]))
    assert set(pinned) == {"ruff", "mypy", "codespell", "pre-commit"}
    hooks = PIN.findall((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert {name for name, _ in hooks} >= {"ruff", "codespell"}
    assert {name: version for name, version in hooks if pinned.get(name, version) != version} == {}


def test_what_is_promised_has_its_tests():
    """Every test that docs/reliability.md names is there."""
    promised = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")))
    files = (ROOT / "tests").rglob("test_*.py")
    there = {name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)}
    assert len(promised) > 50 and promised <= there, promised - there


def test_publishing_waits_for_the_tests():
    workflows = ROOT / ".github" / "workflows"
    publish = (workflows / "publish.yml").read_text(encoding="utf-8")
    assert "uses: ./.github/workflows/tests.yml" in publish
    assert "needs: tests" in publish
    tests = (workflows / "tests.yml").read_text(encoding="utf-8")
    assert "workflow_call:" in tests
    assert 'python: ["3.10", "3.13"]' in tests


def test_what_is_ignored_has_its_reason():
    """`# type: ignore[code]  # why`, so that it can be taken away when the reason is gone."""
    bare = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in (*(ROOT / "wanvideo").rglob("*.py"), *ROOT.glob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if "type: ignore" in line and not re.search(r"# type: ignore\[[\w, -]+\]  # \w", line)
    ]
    assert not bare


def test_the_tests_run_in_a_folder_of_any_name(tmp_path):
    """pytest takes the repository for a package because of ComfyUI's `__init__.py`, which it cannot import alone."""
    clone = tmp_path / "wan-talking-video"
    (clone / "tests" / "unit").mkdir(parents=True)
    for name in ("wanvideo", "tests/support"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "__init__.py", "tests/conftest.py"):
        shutil.copy(ROOT / name, clone / name)
    (clone / "tests" / "unit" / "test_one.py").write_text("def test_one():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "tests/unit/test_one.py"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
