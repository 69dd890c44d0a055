"""Turns on the host, for sandboxes that share it: writers alone, readers together, nobody kept waiting for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from colos.chaos import ActorSystem, CommandSystem, file_exists
from colos.chaos.faults import fault_kinds
from colos.chaos.hostlock import turn
from colos.chaos.mechanisms.filelock import locked
from colos.errors import HarnessBroken
from colos.runtime import Supervisor

READY = file_exists("{run}/up")
FAR_S = 30.0


class Nobody(Supervisor):
    children = ()


ACTORS = ActorSystem(Nobody)
PROGRAM = CommandSystem(["redis-server"], ready=READY)
DISTURBING = "cpu-rival"


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLOS_RUN", str(tmp_path))
    return tmp_path


def setting(system: object, tier: str = "bare") -> Any:
    return SimpleNamespace(session=SimpleNamespace(tier=tier), system=system, kinds=fault_kinds())


@contextmanager
def inside(system: object, *faults: str) -> Iterator[threading.Event]:
    """Another run's turn, begun in a thread: is it inside?  It leaves at the end, or with `leave`."""
    entered, leave = threading.Event(), threading.Event()

    def run() -> None:
        with turn(setting(system), faults, lambda text: None, FAR_S):
            entered.set()
            leave.wait(FAR_S)

    thread = threading.Thread(target=run)
    thread.start()
    entered.leave = leave  # type: ignore[attr-defined]
    try:
        yield entered
    finally:
        leave.set()
        thread.join(FAR_S)


def refused(system: object, *faults: str) -> bool:
    try:
        with turn(setting(system), faults, lambda text: None, 0.05):
            return False
    except HarnessBroken:
        return True


def test_actors_run_beside_each_other_and_programs_alone() -> None:
    with inside(ACTORS) as first:
        assert first.wait(FAR_S)
        assert not refused(ACTORS)
        assert not refused(CommandSystem(["box"], ready=READY, host_bound=False))
        assert refused(PROGRAM)
        assert refused(ACTORS, "kill", DISTURBING)
        assert refused(ActorSystem(Nobody, host_bound=True))
    with inside(PROGRAM) as first:
        assert first.wait(FAR_S)
        assert refused(ACTORS)
        assert refused(PROGRAM)
    assert not refused(PROGRAM)


def test_a_stream_of_readers_keeps_no_writer_waiting(base: Path) -> None:
    with inside(ACTORS) as reader:
        assert reader.wait(FAR_S)
        with inside(PROGRAM) as writer:
            at_the_gate = threading.Event()
            while not at_the_gate.is_set():
                with locked(base / "host.gate", 0) as free:
                    if not free:
                        at_the_gate.set()
            assert not writer.is_set()
            assert refused(ACTORS), "it overtook a writer that waits"
            reader.leave.set()  # type: ignore[attr-defined]
            assert writer.wait(FAR_S)


def test_machines_of_their_own_wait_for_nobody_and_touch_nothing(base: Path) -> None:
    own = setting(PROGRAM, "namespaces")
    with turn(own, [DISTURBING], print, 0), turn(own, [], print, 0):
        assert list(base.iterdir()) == []


def test_who_waits_says_for_what_and_at_the_end_what_to_do(base: Path) -> None:
    said: list[str] = []
    with inside(PROGRAM) as first:
        assert first.wait(FAR_S)
        with pytest.raises(HarnessBroken) as refusal, turn(setting(ACTORS), [], said.append, 0.1):
            pass
    assert f"waiting for the machine (beside other readers): another run's bare sandbox holds {base}/host.lock" in said
    assert "was not to be had beside other readers within 0.1 s" in str(refusal.value)
    assert f"fuser {base}/host.lock" in str(refusal.value)


def test_a_link_in_the_lock_s_place_is_not_followed(base: Path) -> None:
    (base / "elsewhere").touch()
    (base / "host.lock").symlink_to(base / "elsewhere")
    with pytest.raises(HarnessBroken, match="the lock on the machine"), turn(setting(ACTORS), [], print, 1):
        pass
