"""The session: which tier, what the template imports, and where namespaces are refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sandbox_bench import DEADLINE_S, ROOT, eventually, spec

from colos.chaos.sandbox.session import Session
from colos.errors import HarnessBroken

SCRIPT = str(Path(__file__).parent / "session_script.py")
PROGRAM = """
from dataclasses import dataclass

WHERE = __name__

@dataclass(frozen=True)
class Writes:
    text: str
    restarts: object = None

    def run(self, place, ready):
        with open(place.data + "/said", "w") as file:
            file.write(f"{WHERE} {self.text}")
        ready()
        return 7
"""


@pytest.fixture
def own(session: Session) -> Iterator[Session]:
    own = Session(session.tier)
    yield own
    own.close()


def module_of(name: str, file: Path, patch: pytest.MonkeyPatch) -> ModuleType:
    """The module as pytest's importlib mode leaves it: in sys.modules under a name that nothing finds."""
    module = ModuleType(name)
    module.__file__ = str(file)
    patch.setitem(sys.modules, name, module)
    exec(compile(file.read_text(), str(file), "exec"), module.__dict__)
    return module


def test_a_program_of_a_test_module_runs_inside(own: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "test_odd-name.py"
    file.write_text(PROGRAM)
    name = "tests.nowhere.deep.test_odd-name"
    module = module_of(name, file, monkeypatch)
    own.prepare([module])
    own.prepare([module])
    sandbox = own.sandbox(spec())
    try:
        sandbox.start(module.Writes("works"))
        eventually(lambda: sandbox.pump(0.01) and sandbox.exits, "it has ended")
        assert sandbox.exits == [(7, False)]
        assert Path(sandbox.outside("{data}/said")).read_text() == f"{name} works"
    finally:
        sandbox.destroy()


def test_what_the_template_cannot_import_is_told(own: Session, tmp_path: Path) -> None:
    file = tmp_path / "test_broken.py"
    file.write_text("import os\nraise ValueError('on purpose, ' + 'here')\n")
    module = ModuleType("test_broken")
    module.__file__ = str(file)
    with pytest.raises(HarnessBroken, match=r"(?s)test_broken\.py.*line 2.*ValueError: on purpose, here"):
        own.prepare([module])
    own.sandbox(spec()).destroy()  # and the session goes on


def test_a_module_that_ends_the_template_is_told(own: Session, tmp_path: Path) -> None:
    file = tmp_path / "test_deadly.py"
    file.write_text("import os, sys\nprint('last words', file=sys.stderr, flush=True)\nos._exit(3)\n")
    module = ModuleType("test_deadly")
    module.__file__ = str(file)
    with pytest.raises(HarnessBroken, match="last words"):
        own.prepare([module])


def test_a_module_that_runs_programs_at_import_gets_their_status(own: Session, tmp_path: Path) -> None:
    """The template reaps its own children, and only those."""
    file = tmp_path / "test_runs.py"
    file.write_text("import subprocess\nassert subprocess.run(['/bin/sh', '-c', 'exit 5']).returncode == 5\n")
    module = ModuleType("test_runs")
    module.__file__ = str(file)
    own.prepare([module])


def test_no_descriptor_stays_when_a_session_is_closed(session: Session) -> None:
    before = len(os.listdir("/proc/self/fd"))
    own = Session(session.tier)
    own.sandbox(spec()).destroy()
    own.close()
    own.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_closing_a_session_that_was_never_used() -> None:
    session = Session()
    session.close()
    session.close()


def test_bare_can_be_asked_for() -> None:
    session = Session("bare")
    assert session.tier == "bare"
    assert session.refusal == "bare was asked for"
    session.close()


def test_a_sandbox_with_a_writable_path_that_is_not_there_says_so(namespaces: Session) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HarnessBroken, match="/no/such/path"):
        namespaces.sandbox(spec(writable=("/no/such/path",)))
    assert len(os.listdir("/proc/self/fd")) == before
    namespaces.sandbox(spec()).destroy()


# --- where the machine is another ---------------------------------------------------------


def report(prefix: tuple[str, ...], *arguments: str) -> Any:
    done = subprocess.run(
        [*prefix, sys.executable, SCRIPT, "report", *(arguments or ("", ""))],
        capture_output=True,
        text=True,
        timeout=6 * DEADLINE_S,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def unshare(*flags: str, then: str) -> tuple[str, ...]:
    """A prefix that runs a command as the root of a user namespace after `then`, which is really carried out there."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare(1) is not installed")
    return ("unshare", "--user", "--map-root-user", *flags, "sh", "-e", "-c", f'{then}\nexec "$@"', "sh")


def test_where_namespaces_are_refused_the_session_is_bare_and_says_why(namespaces: Session) -> None:
    del namespaces  # only where they can be had can they be taken away
    told = report(unshare(then="echo 0 > /proc/sys/user/max_user_namespaces"))
    assert told["tier"] == "bare"
    assert os.strerror(errno.ENOSPC) in told["refusal"]
    assert told["answer"] == 42


def test_where_mounting_is_refused_the_session_is_bare_and_says_why(namespaces: Session) -> None:
    del namespaces
    told = report(unshare(then="echo 0 > /proc/sys/user/max_mnt_namespaces"))
    assert told["tier"] == "bare"
    assert told["refusal"]
    assert told["answer"] == 42


def test_namespaces_asked_for_and_refused_break_the_harness(namespaces: Session) -> None:
    del namespaces
    code = (
        "from colos.chaos.sandbox.session import Session\n"
        "from colos.errors import HarnessBroken\n"
        "session = Session('namespaces')\n"
        "try: session.tier\n"
        "except HarnessBroken as error: print(error)\n"
        "session.close()"
    )
    prefix = unshare(then="echo 0 > /proc/sys/user/max_user_namespaces")
    done = subprocess.run(
        [*prefix, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=6 * DEADLINE_S,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "'namespaces' was asked for" in done.stdout, done.stderr
    assert "No space left" in done.stdout


def test_kept_and_writable_paths_on_a_mount_with_locked_flags(namespaces: Session, tmp_path: Path) -> None:
    """A temporary directory is mounted nosuid and nodev on many machines; the sandbox may not undo that."""
    del namespaces
    mount = f"mount -t tmpfs -o nosuid,nodev,noexec none '{tmp_path}'\nmkdir '{tmp_path}/open'"
    told = report(unshare("--mount", then=mount), str(tmp_path), str(tmp_path / "open"))
    assert told["tier"] == "namespaces", told["refusal"]
    assert told["wrote"] == 0
    assert told["refused"] == errno.EROFS
