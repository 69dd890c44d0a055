"""The run directory as its readers see it, also while it changes; and the kernel's words about processes."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from colos.runtime import process, rundir
from colos.runtime.process import Death
from colos.runtime.rundir import ActorEntry, ExitRecord, RunDirectory, exit_text, read_actors
from colos.runtime.supervisor import Plan

PLAN = Plan("writer", "actor", "tests:Writer", None, "permanent", 5.0, 10.0, False, None, None)
POOL = Plan("pool", "supervisor", "tests:Pool", "the-pool", "permanent", math.inf, 10.0, False, None, None)


def made(tmp_path: Path, supervisor: str = "ledger tests:LedgerSupervisor") -> RunDirectory:
    directory = RunDirectory(str(tmp_path))
    directory.make(supervisor)
    return directory


def test_readers_see_the_newest_incarnation_of_each_path(tmp_path: Path) -> None:
    directory = made(tmp_path)
    first = directory.add_actor("ledger/writer", "ledger", PLAN, 0)
    directory.set_pid(first, 41, 7)
    other = directory.add_actor("ledger/front", "ledger", PLAN, 0)
    directory.set_exit(first, "ledger/writer", "killed\n")
    second = directory.add_actor("ledger/writer", "ledger", PLAN, 1)
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
    id_ = directory.add_actor("a/b", "a", PLAN, 0)
    (tmp_path / f"actors/{id_}/pid").touch()
    assert read_actors(str(tmp_path)) == [ActorEntry(id_, "a/b", None, "starting", 0)]


def test_only_the_last_exits_are_kept(tmp_path: Path) -> None:
    directory = made(tmp_path)
    ids = [directory.add_actor("a/b", "a", PLAN, number) for number in range(6)]
    for id_ in ids:
        directory.set_exit(id_, "a/b", f"reason {id_}\n")
    assert sorted(os.listdir(tmp_path / "actors")) == [str(id_) for id_ in ids[-rundir.KEEP_EXITED :]]
    assert (tmp_path / f"actors/{ids[-1]}/exit").read_text() == f"reason {ids[-1]}\n"


def test_a_new_node_clears_the_old_ones_files_and_goes_on_counting(tmp_path: Path) -> None:
    old = made(tmp_path)
    last = old.add_actor("a/b", "a", PLAN, 0)
    old.link_name("b", last)
    assert os.readlink(tmp_path / "names/b") == f"../actors/{last}"
    new = made(tmp_path)
    assert os.listdir(tmp_path / "names") == os.listdir(tmp_path / "actors") == []
    assert new.add_actor("a/b", "a", PLAN, 0) == last + 1


def test_a_view_that_cannot_be_written_is_let_go(tmp_path: Path) -> None:
    assert not rundir.write(str(tmp_path / "gone/state"), "running\n")
    assert rundir.write(str(tmp_path / "state"), "running\n")
    assert os.listdir(tmp_path) == ["state"]


def test_a_node_that_had_a_longer_name_before_leaves_nothing_of_it(tmp_path: Path) -> None:
    made(tmp_path, "ledger tests:LedgerSupervisor")
    made(tmp_path, "app tests:App")
    assert (tmp_path / "supervisor").read_text() == "app tests:App\n"


def test_an_incarnation_shows_what_it_is(tmp_path: Path) -> None:
    directory = made(tmp_path)
    assert directory.next_id() == 1
    id_ = directory.add_actor("ledger/writer", "ledger", replace(PLAN, name="w", heartbeat_s=1.5), 3)
    assert (id_, directory.next_id()) == (1, 2)
    shown = {path.name: path.read_text() for path in Path(directory.actor(id_)).iterdir()}
    assert shown == {
        "path": "ledger/writer\n",
        "parent": "ledger\n",
        "spec": "kind actor\nactor tests:Writer\nname w\nrestart permanent\nshutdown_s 5\nheartbeat_s 1.5\n",
        "restarts": "3\n",
        "state": "starting\n",
    }


def test_supervisors_have_a_directory_and_are_not_among_the_processes(tmp_path: Path) -> None:
    directory = made(tmp_path)
    pool = directory.add_actor("ledger/pool", "ledger", POOL, 0)
    directory.set_state(pool, "running")
    assert (tmp_path / f"actors/{pool}/state").read_text() == "running\n"
    assert "shutdown_s inf" in (tmp_path / f"actors/{pool}/spec").read_text()
    assert read_actors(str(tmp_path)) == []


def test_relations_are_files_while_there_are_any(tmp_path: Path) -> None:
    directory = made(tmp_path)
    id_ = directory.add_actor("a/b", "a", PLAN, 0)
    links, monitors = tmp_path / f"actors/{id_}/links", tmp_path / f"actors/{id_}/monitors"
    directory.set_relations(id_, ["a/c", "a/d"], [])
    assert links.read_text() == "a/c\na/d\n"
    assert not monitors.exists()
    directory.set_relations(id_, [], ["a/c"])
    assert not links.exists()
    assert monitors.read_text() == "a/c\n"
    directory.set_relations(id_, [], [])
    directory.set_relations(id_, [], [])
    assert not monitors.exists()


def test_a_name_moves_to_its_next_holder_and_is_freed(tmp_path: Path) -> None:
    directory = made(tmp_path)
    for id_ in (directory.add_actor("a/b", "a", PLAN, number) for number in range(2)):
        directory.link_name("b", id_)
        assert (tmp_path / "names/b").resolve() == Path(directory.actor(id_)).resolve()
    directory.unlink_name("b")
    directory.unlink_name("b")
    assert os.listdir(tmp_path / "names") == []


def test_the_end_takes_away_the_socket_and_says_why(tmp_path: Path) -> None:
    directory = made(tmp_path)
    id_ = directory.add_actor("a/b", "a", PLAN, 0)
    (tmp_path / f"actors/{id_}/sock").touch()
    directory.set_exit(id_, "a/b", "killed\n")
    assert not (tmp_path / f"actors/{id_}/sock").exists()
    assert read_actors(str(tmp_path)) == [ActorEntry(id_, "a/b", None, "exited", 0)]


@pytest.mark.parametrize("reason", ["killed", ("shutdown", "idle"), None, "two\nlines"])
def test_an_exit_file_begins_with_the_reason_in_one_line(reason: object) -> None:
    record = ExitRecord("a/b", 1, 42, reason, "Traceback: x\n", "said\n", 1.5, True, "mailbox: 3 waiting")
    text = exit_text(record, Death(9, 0.25, 0.125, 1000))
    first = text.splitlines()[0]
    assert first == ("two lines" if reason == "two\nlines" else reason if isinstance(reason, str) else repr(reason))
    for helps in (
        "Traceback: x",
        "mailbox: 3 waiting",
        "its output ends:\nsaid",
        "pid 42, ran 1.500 s",
        "user 0.250 s",
    ):
        assert helps in text
    assert exit_text(ExitRecord.unborn("a/b", "noproc"), None) == "noproc\n\npid None, ran 0.000 s\n"


def test_what_cannot_be_written_is_counted_and_let_go(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = made(tmp_path)
    id_ = directory.add_actor("a/b", "a", PLAN, 0)
    (tmp_path / f"actors/{id_}").rename(tmp_path / "away")
    (tmp_path / "names").rmdir()
    writes: list[Callable[[], object]] = [
        lambda: directory.set_state(id_, "running"),
        lambda: directory.set_relations(id_, ["a/c"], []),
        lambda: directory.link_name("b", id_),
        lambda: directory.set_pid(id_, 1, 1),
        lambda: directory.set_exit(id_, "a/b", "killed\n"),
    ]
    for write in writes:
        before = directory.failed_writes
        write()
        assert directory.failed_writes > before
    assert capfd.readouterr().err.count("its files are stale from here on") == 1


def test_a_directory_that_cannot_be_made_takes_no_id(tmp_path: Path) -> None:
    directory = made(tmp_path)
    (tmp_path / "actors").rmdir()
    with pytest.raises(OSError):
        directory.add_actor("a/b", "a", PLAN, 0)
    assert directory.next_id() == 1


def test_a_closed_node_stays_readable(tmp_path: Path) -> None:
    directory = made(tmp_path)
    assert (tmp_path / "root.pid").read_text() == f"{os.getpid()}\n"
    id_ = directory.add_actor("a/b", "a", PLAN, 0)
    (tmp_path / "sock").touch()
    directory.close()
    assert not (tmp_path / "sock").exists()
    assert not (tmp_path / "root.pid").exists()
    assert [entry.id for entry in read_actors(str(tmp_path))] == [id_]


def test_deaths_are_told_in_words() -> None:
    assert process.describe_status(3 << 8) == "exited with status 3"
    assert process.describe_status(signal.SIGKILL) == "killed"
    assert process.describe_status(signal.SIGSEGV | 0x80) == "killed (SIGSEGV)"
    assert process.describe_status(40) == "killed (signal 40)"


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
