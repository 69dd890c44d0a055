"""A project of its own for each test, and a system that is cheap to break: ``sh`` and a file."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

#: A box is one process that says when it has started, a data disk, and no readiness but the true one.
BOX = """
from hypothesis import strategies as st
from hypothesis.stateful import rule
from colos.chaos import (
    ChaosMachine, CommandSystem, DiskFull, Kill, Restarts, always, eventually, file_exists, sometimes
)


def up(system):
    try:
        with open(system.path("{run}/starts")) as file:
            return len(file.readlines()) == system.sandbox.starts
    except FileNotFoundError:
        return False


class Box(ChaosMachine):
    system = CommandSystem(
        ["sh", "-c", "echo start >> {run}/starts; exec sleep 1000"],
        ready=up,
        restarts=Restarts(limit=50),
        name="box",
    )
    refusals = (OSError,)

    def __init__(self):
        super().__init__()
        self.refused = False

    @rule(size=st.integers(60000, 70000))
    def put(self, size):
        try:
            with open(self.system.path("{data}/notes"), "ab") as file:
                file.write(b"x" * size)
        except OSError:
            self.refused = True
            raise

    def starts(self):
        with open(self.system.path("{run}/starts")) as file:
            return len(file.readlines())
"""

KILLED = """
class TestKilled(Box):
    faults = (Kill("box"),)

    @always
    def started_once(self):
        assert self.starts() == 1, "it was started again"
"""

#: Other people's plugins, which only cost time here.
UNNEEDED = ("-p", "no:randomly", "-p", "no:faker")
TIMEOUT_S = 60.0


class Project:
    """A temporary project, and pytest run in it as a user runs it."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.path = pytester.path
        self.temporary = self.path / "temporary"
        self.temporary.mkdir()
        self.output = self.path / "output.txt"

    def write(self, name: str, text: str | bytes) -> Path:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, bytes):
            file.write_bytes(text)
        else:
            file.write_text(textwrap.dedent(text))
        return file

    def box(self, *parts: str, name: str = "test_box.py") -> Path:
        """A test module with the box and these classes."""
        return self.write(name, BOX + "\n".join(textwrap.dedent(part) for part in parts))

    def scenario(self, name: str, test: str, violates: str, *steps: str, extra: str = "") -> Path:
        body = "".join(f"  {step},\n" for step in steps)
        head = f'format = 1\ntest = "{test}"\nviolates = "{violates}"\n'
        return self.write(f"scenarios/{name}.toml", f"{head}{extra}steps = [\n{body}]\n")

    def pytest(self, *arguments: str) -> pytest.RunResult:
        """Run pytest in a process of its own."""
        return self.pytester.runpytest_subprocess(*UNNEEDED, *arguments, timeout=TIMEOUT_S)

    def start(self, *arguments: str, mark: str) -> subprocess.Popen[bytes]:
        """Begin a run of its own session, whose processes and temporary files can be told from all others."""
        with self.output.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "pytest", *UNNEEDED, *arguments],
                cwd=self.path,
                env={**os.environ, "COLOS_TEST_MARK": mark, "TMPDIR": str(self.temporary)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name in [name for name in os.environ if name.startswith(("PYTEST_XDIST", "GITHUB_"))]:
        monkeypatch.delenv(name)  # the project's own run is no worker and no job, whatever runs this test
    return Project(pytester)


@pytest.fixture
def killed() -> str:
    """A machine whose one property any kill violates."""
    return KILLED
