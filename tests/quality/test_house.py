"""The house rules: style, types, and who may import whom.  The same commands as a developer's."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("arguments", [("check", "."), ("format", "--check", ".")], ids=["check", "format"])
def test_ruff(arguments: tuple[str, ...]) -> None:
    run(sys.executable, "-m", "ruff", *arguments)


@pytest.mark.slow
def test_mypy_strict() -> None:
    run(sys.executable, "-m", "mypy")


@pytest.mark.slow
def test_import_contracts() -> None:
    run(str(SCRIPTS / "lint-imports"))


def test_every_room_of_the_runtime_is_under_the_kernel_contract() -> None:
    contract = (ROOT / "pyproject.toml").read_text().rpartition("[[tool.importlinter.contracts]]")[2]
    named = set(re.findall(r'"colos\.runtime\.(\w+)"', contract))
    rooms = {path.stem for path in (ROOT / "colos" / "runtime").glob("*.py")} - {"__init__", "process"}
    assert rooms <= named, f"pyproject.toml: these may import ctypes unseen: {', '.join(sorted(rooms - named))}"


def test_no_room_outgrows_a_reader() -> None:
    for path in (ROOT / "colos").rglob("*.py"):
        lines = path.read_text().splitlines()
        assert len(lines) <= 500, f"{path.relative_to(ROOT)} has {len(lines)} lines: what wants to live elsewhere?"


def test_the_readme_names_the_command_that_ci_runs() -> None:
    last = (ROOT / ".ci" / "run").read_text().rstrip().splitlines()[-1]
    assert last in (ROOT / "README.md").read_text()


def test_every_relative_link_of_the_documents_leads_somewhere() -> None:
    documents = [path for folder in (".", "docs", "tests", "benchmarks") for path in (ROOT / folder).glob("*.md")]
    for document in documents:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"
