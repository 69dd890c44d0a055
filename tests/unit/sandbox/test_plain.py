"""The parts of a sandbox that need no sandbox: places, policies, packets, and reading /proc."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from colos.chaos.sandbox import wire
from colos.chaos.sandbox.processes import descendants, read_process
from colos.chaos.sandbox.spec import COVERED, Place, SandboxSpec, kept_paths

PLACE = Place("/x/data", "/x/run", "/x/home", "/x/tmp")

# --- places --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("{data}/file", "/x/data/file"),
        ("{run}:{home}:{tmp}", "/x/run:/x/home:/x/tmp"),
        ("{other} {} {{data}", "{other} {} {/x/data"),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_only_the_four_names_are_expanded(text: str, expanded: str) -> None:
    assert PLACE.expand(text) == expanded


def test_the_environment_is_ours_with_other_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOS_TEST_MARK", "seen")
    environment = PLACE.environment()
    assert environment["COLOS_TEST_MARK"] == "seen"
    assert (environment["HOME"], environment["TMPDIR"]) == ("/x/home", "/x/tmp")
    assert os.path.dirname(sys.executable) in environment["PATH"].split(os.pathsep)


def test_the_interpreter_is_on_the_path_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = os.path.dirname(sys.executable)
    monkeypatch.setenv("PATH", f"/bin:{scripts}")
    assert PLACE.environment()["PATH"] == f"/bin:{scripts}"
    monkeypatch.delenv("PATH")
    assert PLACE.environment()["PATH"].startswith(scripts + os.pathsep)


def test_kept_paths_are_the_topmost_under_what_is_covered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not str(tmp_path).startswith("/tmp/"):
        pytest.skip("the temporary directory is not one that a sandbox covers")
    (tmp_path / "project" / "tests").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "project" / "tests"), "/usr/lib", "/tmp/no/such"])
    monkeypatch.chdir(tmp_path / "project")
    found = kept_paths((str(tmp_path / "other"),))
    assert str(tmp_path / "project") in found
    assert str(tmp_path / "other") in found
    assert str(tmp_path / "project" / "tests") not in found
    assert all(path.startswith(COVERED) for path in found)


def test_a_spec_is_data() -> None:
    spec = SandboxSpec(data_bytes=1, writable=("/x",))
    assert pickle.loads(pickle.dumps(spec)) == spec


# --- packets -------------------------------------------------------------------------------


def test_messages_keep_their_boundaries_and_bring_descriptors() -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        wire.send(ours, ("one", 1))
        with open(os.devnull) as file:
            wire.send(ours, ("two", [2]), (file.fileno(),))
        assert wire.receive(theirs) == (("one", 1), [])
        received = wire.receive(theirs)
        assert received is not None
        message, descriptors = received
        assert message == ("two", [2])
        assert os.readlink(f"/proc/self/fd/{descriptors[0]}") == os.devnull
        assert not os.get_inheritable(descriptors[0])
        os.close(descriptors[0])


def test_the_end_of_the_peer_is_none() -> None:
    ours, theirs = wire.pair()
    with theirs:
        wire.send(ours, "last")
        ours.close()
        assert wire.receive(theirs) == ("last", [])
        assert wire.receive(theirs) is None


def test_a_peer_that_goes_with_unread_packets_is_none() -> None:
    ours, theirs = wire.pair()
    with theirs:
        wire.send(theirs, "never read")
        ours.close()
        assert wire.receive(theirs) is None
        with pytest.raises(OSError, match="Broken pipe"):
            wire.send(theirs, "more")


def test_the_largest_message_fits_and_a_larger_one_is_refused() -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        overhead = len(pickle.dumps(b"x" * 100_000, protocol=5)) - 100_000
        largest = b"x" * (wire.LARGEST_MESSAGE - overhead)
        wire.send(ours, largest)
        assert wire.receive(theirs) == (largest, [])
        with pytest.raises(ValueError, match="over the"):
            wire.send(ours, largest + b"x")


def test_waiting_has_a_deadline_and_sees_an_end() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        assert not wire.readable(theirs, 0)
        assert not wire.readable(theirs, -1)
        ours.close()
        assert wire.readable(theirs, 10)


# --- /proc ---------------------------------------------------------------------------------


def test_a_process_is_read_whatever_its_name(tmp_path: Path) -> None:
    odd = tmp_path / "a) Z (b"
    odd.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(odd), "60"])
    try:
        found = read_process(process.pid)
        assert found is not None
        assert found.command == "a) Z (b"
        assert found.parent == os.getpid()
        assert found.inner_pid == process.pid
        assert found.state in "RSD"
        assert found in [*descendants(os.getpid()), found]
        assert process.pid in {p.pid for p in descendants(os.getpid())}
    finally:
        process.kill()
        process.wait()
    assert read_process(process.pid) is None
    assert descendants(process.pid) == []


def test_descendants_come_parents_first() -> None:
    process = subprocess.Popen(["/bin/sh", "-c", "sh -c 'sleep 60 & echo up; wait' & wait"], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        found = descendants(process.pid)
        seen = {process.pid}
        for each in found:
            assert each.parent in seen
            seen.add(each.pid)
        assert len(found) == 2
    finally:
        for each in [*descendants(process.pid)]:
            os.kill(each.pid, 9)
        process.kill()
        process.communicate()
