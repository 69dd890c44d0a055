"""The stats file as its readers see it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colos.runtime.stats import Stats, read_stats


def test_readers_see_what_is_so_now(tmp_path: Path) -> None:
    path = str(tmp_path / "stats")
    assert read_stats(path) == {}
    stats = Stats(path)
    assert read_stats(path) == {"mailbox": "0", "call": "-", "beat": "0"}
    stats.waiting(12345)
    stats.busy("deposit")
    stats.beat()
    stats.beat()
    assert read_stats(path) == {"mailbox": "12345", "call": "deposit", "beat": "2"}
    stats.waiting(7)
    stats.idle()
    stats.beat()
    assert read_stats(path) == {"mailbox": "7", "call": "-", "beat": "3"}


def test_it_is_text_of_one_size_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "stats"
    stats = Stats(str(path))
    size = path.stat().st_size
    assert path.stat().st_mode & 0o777 == 0o600
    for step in (lambda: stats.waiting(10**12), lambda: stats.busy("m" * 100), stats.beat, stats.idle):
        step()
        assert path.stat().st_size == size
        assert re.fullmatch(r"mailbox +\d+ *\ncall +\S+ *\nbeat +\d+ *\n", path.read_text())


@given(st.lists(st.sampled_from(["waiting", "busy", "idle", "beat"]), max_size=20), st.data())
def test_nothing_of_one_field_or_of_before_shows_in_another(steps: list[str], data: st.DataObject) -> None:
    expected = {"mailbox": "0", "call": "-", "beat": "0"}
    path = f"/dev/shm/colos-stats-{os.getpid()}"
    try:
        stats = Stats(path)
        for step in steps:
            if step == "waiting":
                count = data.draw(st.integers(0, 10**9))
                stats.waiting(count)
                expected["mailbox"] = str(count)
            elif step == "busy":
                method = data.draw(st.from_regex(r"[a-zé_]{1,60}", fullmatch=True))
                stats.busy(method)
                shown = method.encode()[:40].decode(errors="replace")
                expected["call"] = shown
            elif step == "idle":
                stats.idle()
                expected["call"] = "-"
            else:
                stats.beat()
                expected["beat"] = str(int(expected["beat"]) + 1)
            assert read_stats(path) == expected
    finally:
        os.unlink(path)


def test_a_new_process_begins_anew(tmp_path: Path) -> None:
    path = str(tmp_path / "stats")
    Stats(path).waiting(9)
    Stats(path)
    assert read_stats(path) == {"mailbox": "0", "call": "-", "beat": "0"}


def test_what_arrives_shows_at_once_only_while_nobody_takes_it(tmp_path: Path) -> None:
    path = str(tmp_path / "stats")
    stats = Stats(path)
    stats.arrived(3)
    assert read_stats(path)["mailbox"] == "0"
    stats.busy("deposit")
    stats.arrived(3)
    assert read_stats(path)["mailbox"] == "3"
    stats.idle()
    stats.waiting(0)
    assert read_stats(path)["mailbox"] == "0"


def test_what_happens_in_a_forked_copy_is_not_told(tmp_path: Path) -> None:
    path = str(tmp_path / "stats")
    stats, copy = Stats(path), Stats(str(tmp_path / "other"))
    copy.close_after_fork()
    for one in (stats, copy):
        one.waiting(5)
        one.beat()
    assert read_stats(path)["mailbox"] == "5"
    assert read_stats(str(tmp_path / "other")) == {"mailbox": "0", "call": "-", "beat": "0"}


@pytest.mark.parametrize("place", ["gone/stats", "."], ids=["no directory", "a directory"])
def test_without_a_file_all_else_goes_on(tmp_path: Path, place: str) -> None:
    path = str(tmp_path / place)
    stats = Stats(path)
    stats.waiting(1)
    stats.busy("deposit")
    stats.idle()
    stats.beat()
    assert read_stats(path) == {}


def test_on_a_full_disk_too() -> None:
    stats = Stats("/dev/full")
    stats.waiting(1)
    stats.beat()
