"""The lock on a file or folder: held by one or by readers, waited for only so long, let go by the dead."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from colos.chaos.mechanisms.filelock import locked

HOLD = """
import sys, time
from colos.chaos.mechanisms.filelock import locked
with locked(sys.argv[1], 10, shared=len(sys.argv) > 2) as held:
    print(held, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    if request.param == "folder":
        return tmp_path
    file = tmp_path / "file"
    file.touch()
    return file


def holder(place: Path, *arguments: str) -> subprocess.Popen[str]:
    path = f"import sys; sys.path[:] = {sys.path!r}\n"
    process = subprocess.Popen(
        [sys.executable, "-c", path + HOLD, place, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


@pytest.mark.parametrize("place", ["folder", "file"], indirect=True)
def test_an_exclusive_lock_is_held_by_one_and_waited_for_only_so_long(place: Path) -> None:
    waited = []
    with holder(place) as other:
        with locked(place, 0.1, waiting=lambda: waited.append(1)) as held:
            assert not held
        with locked(place, 0.1, shared=True) as held:
            assert not held
        other.kill()
    assert waited
    with locked(place, 10) as held:
        assert held, "the dead still holds it"


@pytest.mark.parametrize("place", ["folder", "file"], indirect=True)
def test_readers_hold_it_together_and_keep_a_writer_out(place: Path) -> None:
    with holder(place, "shared") as other:
        with locked(place, 0, shared=True) as held:
            assert held
        with locked(place, 0.05) as held:
            assert not held
        assert other.stdin is not None
        other.stdin.close()
        with locked(place, 20) as held:
            assert held, "it was let go of, and could not be had"


def test_what_is_not_there_is_an_error_and_leaves_no_descriptor(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), locked(tmp_path / "nothing", 1):
        pass


def test_a_wait_ends_as_soon_as_it_can(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        began = time.monotonic()

        def end() -> None:
            if other.stdin is not None and not other.stdin.closed:
                other.stdin.close()

        with locked(tmp_path, 600, waiting=end) as held:
            assert held
        assert time.monotonic() - began < 60
