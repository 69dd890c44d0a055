"""The wall clock of a node: its arithmetic, its file, and what several who put it wrong make of it."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colos.chaos.mechanisms.wallclocks import Face, Setting
from colos.runtime import wall_time
from colos.runtime.clock import Skew, put_right, put_wrong, read_skew

NUMBERS = st.floats(-1e10, 1e10)


def near_now(seconds: float) -> bool:
    return abs(seconds - time.time()) < 30


def test_without_a_run_directory_it_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLOS_RUN", raising=False)
    assert near_now(wall_time())


def test_it_is_wrong_from_one_reading_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOS_RUN", str(tmp_path))
    assert near_now(wall_time())
    put_wrong(str(tmp_path), Skew(0.0, 500.0, 0.0))
    assert wall_time() == 500.0
    put_wrong(str(tmp_path), Skew(0.0, 7.0, 0.0))
    assert wall_time() == 7.0
    put_right(str(tmp_path))
    put_right(str(tmp_path))
    assert near_now(wall_time())
    assert os.listdir(tmp_path) == []


def test_it_needs_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOS_RUN", str(tmp_path))
    put_wrong(str(tmp_path), Skew(0.0, 500.0, 0.0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        shown = wall_time()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert shown == 500.0


@pytest.mark.parametrize("text", ["nonsense", "1.0 2.0", "1.0 2.0 3.0 4.0", "a b c"])
def test_somebody_elses_link_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("COLOS_RUN", str(tmp_path))
    (tmp_path / ".wall-clock").symlink_to(text)
    assert near_now(wall_time())


@given(true=NUMBERS, shown=NUMBERS, rate=st.floats(0, 100))
def test_it_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, true: float, shown: float, rate: float
) -> None:
    directory = str(tmp_path_factory.getbasetemp())
    put_wrong(directory, Skew(true, shown, rate))
    assert read_skew(directory) == Skew(true, shown, rate)
    put_right(directory)


def test_a_skew_goes_on_from_where_it_was_put() -> None:
    skew = Skew(1000.0, 5000.0, 2.0)
    assert skew.at(1000.0) == 5000.0
    assert skew.at(1010.0) == 5020.0


@given(
    settings=st.lists(st.builds(Setting, st.integers(-1000, 1000), st.sampled_from((0.0, 0.5, 1.0, 2.0))), min_size=1),
    data=st.data(),
)
def test_whoever_ends_last_leaves_it_right(settings: list[Setting], data: st.DataObject) -> None:
    face, now = Face(), 0.0
    for at, setting in enumerate(settings):
        skew = face.put(at, setting, now)
        assert skew.at(now) - now == pytest.approx(skew.shown - now)
        now += 1
    for at in data.draw(st.permutations(range(len(settings)))):
        assert face.skew is not None
        face.take(at, now)
        now += 1
    assert face.skew is None
    assert face.take("a stranger", now) is None


def test_jumps_add_up_and_rates_multiply() -> None:
    face = Face()
    face.put("a", Setting(100.0, 2.0), 0.0)
    skew = face.put("b", Setting(-30.0, 0.5), 10.0)
    assert (skew.at(10.0), skew.rate) == (90.0, 1.0), "100 + 10 s at twice the speed - 30"
    skew = face.put("c", Setting(rate=0.0), 20.0)
    assert (skew.at(25.0), skew.rate) == (100.0, 0.0)
    left = face.take("a", 30.0)
    assert left is not None
    assert (left.at(30.0), left.rate) == (0.0, 0.0), "the jump is undone, the stop stays"
