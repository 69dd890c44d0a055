"""The run directory as its readers see it, also while it changes; and names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from colos.errors import NoSuchActor
from colos.runtime import process, rundir
from colos.runtime.registry import Entry, Registry
from colos.runtime.rundir import ActorEntry, RunDirectory, read_actors


def made(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(str(tmp_path))
    directory.make("ledger tests:LedgerSupervisor")
    return directory


def test_readers_see_the_newest_incarnation_of_each_path(tmp_path: Path) -> None:
    directory = made(tmp_path)
    first = directory.add_actor("ledger/writer", "ledger", "spec\n", 0)
    directory.set_pid(first, 41, 7)
    other = directory.add_actor("ledger/front", "ledger", "spec\n", 0)
    directory.set_exit(first, "ledger/writer", "killed (SIGKILL)\n")
    second = directory.add_actor("ledger/writer", "ledger", "spec\n", 1)
    directory.set_pid(second, 42, 8)
    rundir.write(f"{directory.actor(second)}/state", "running\n")
    assert sorted(read_actors(str(tmp_path)), key=lambda entry: entry.id) == [
        ActorEntry(other, "ledger/front", None, "starting", 0),
        ActorEntry(second, "ledger/writer", 42, "running", 1),
    ]


def test_readers_put_up_with_what_is_half_made_or_gone(tmp_path: Path) -> None:
    assert read_actors(str(tmp_path / "nothing")) == []
    directory = made(tmp_path)
    (tmp_path / "actors/9").mkdir()
    (tmp_path / "actors/stray").touch()
    id_ = directory.add_actor("a/b", "a", "spec\n", 0)
    (tmp_path / f"actors/{id_}/pid").touch()
    assert read_actors(str(tmp_path)) == [ActorEntry(id_, "a/b", None, "starting", 0)]


def test_only_the_last_exits_are_kept(tmp_path: Path) -> None:
    directory = made(tmp_path)
    ids = [directory.add_actor("a/b", "a", "spec\n", number) for number in range(6)]
    for id_ in ids:
        directory.set_exit(id_, "a/b", f"reason {id_}\n")
    assert sorted(os.listdir(tmp_path / "actors")) == [str(id_) for id_ in ids[-rundir.KEEP_EXITED :]]
    assert (tmp_path / f"actors/{ids[-1]}/exit").read_text() == f"reason {ids[-1]}\n"


def test_a_new_node_clears_the_old_ones_files_and_goes_on_counting(tmp_path: Path) -> None:
    old = made(tmp_path)
    last = old.add_actor("a/b", "a", "spec\n", 0)
    old.link_name("b", last)
    assert os.readlink(tmp_path / "names/b") == f"../actors/{last}"
    new = made(tmp_path)
    assert os.listdir(tmp_path / "names") == os.listdir(tmp_path / "actors") == []
    assert new.add_actor("a/b", "a", "spec\n", 0) == last + 1


def test_a_view_that_cannot_be_written_is_let_go(tmp_path: Path) -> None:
    assert not rundir.write(str(tmp_path / "gone/state"), "running\n")
    assert rundir.write(str(tmp_path / "state"), "running\n")
    assert os.listdir(tmp_path) == ["state"]


def test_names_are_unique_and_freed_together() -> None:
    registry = Registry()
    registry.add(Entry("ledger/writer", 1), "writer")
    with pytest.raises(ValueError, match="taken"):
        registry.add(Entry("ledger/other", 2), "writer")
    assert registry.whereis("writer") == registry.whereis("ledger/writer") == Entry("ledger/writer", 1)
    assert registry.remove(1) == ["writer"]
    assert registry.remove(1) == []
    with pytest.raises(NoSuchActor, match="nothing is registered"):
        registry.whereis("writer")


def test_deaths_are_told_in_words() -> None:
    assert process.describe_status(3 << 8) == "exited with status 3"
    assert process.describe_status(signal.SIGKILL) == "killed (SIGKILL)"
    assert process.describe_status(signal.SIGSEGV | 0x80) == "killed (SIGSEGV)"


def test_a_killed_process_is_dying_at_once() -> None:
    for _ in range(20):
        child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
        try:
            assert not process.is_dying(child.pid)
            os.kill(child.pid, signal.SIGKILL)
            assert process.is_dying(child.pid)
        finally:
            child.kill()
            child.wait(10)
    assert process.is_dying(child.pid)


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    first = process.lock_file(str(tmp_path / "lock"))
    assert first is not None
    assert process.lock_file(str(tmp_path / "lock")) is None
    os.close(first)
    again = process.lock_file(str(tmp_path / "lock"))
    assert again is not None
    os.close(again)
