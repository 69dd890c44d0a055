"""The journal: on disk at once, bounded, readable after any death, and never in the way."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import signal
import sys
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colos.chaos import journal as module
from colos.chaos.journal import Event, Journal, read


@pytest.fixture
def path(tmp_path):
    return tmp_path / "not" / "yet" / "journal.jsonl"


def ticking():
    return itertools.count(100.0, 0.5).__next__


def test_a_record_reads_back(path):
    with Journal(path, ticking()) as journal:
        assert not path.parent.exists()
        journal.record("example", number=1)
        journal.record("step", index=0, text='{ op = "deposit" }')
        journal.record("outcome", outcome="refused", kind="MailboxFull")
        events = journal.events()
    assert list(read(path)) == list(events)
    assert [(event.seq, event.t_s, event.kind) for event in events] == [
        (0, 0.5, "example"),
        (1, 1.0, "step"),
        (2, 1.5, "outcome"),
    ]
    assert events[2].data == {"outcome": "refused", "kind": "MailboxFull"}
    assert events[0].wall is not None
    assert events[0].wall.endswith("+00:00")
    assert events[1].wall is None
    assert [json.loads(line)["seq"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_a_step_is_on_disk_before_it_runs(path):
    """A process that dies by SIGKILL right after recording leaves what it recorded."""
    child = os.posix_spawn(
        sys.executable,
        [
            "python",
            "-c",
            "import os, signal, sys; from colos.chaos.journal import Journal\n"
            "Journal(sys.argv[1]).record('step', index=0)\n"
            "os.kill(os.getpid(), signal.SIGKILL)",
            str(path),
        ],
        os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert [event.data for event in read(path)] == [{"index": 0}]


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (b"x", "b'x'"),
        ({1}, "{1}"),
        ((1, [None, True]), [1, [None, True]]),
        ({1: "a", "b": 2.5}, {"1": "a", "b": 2.5}),
        (OrderedDict(a=1), repr(OrderedDict(a=1))),
        (2**70, str(2**70)),
        ("\ud800\n", "\ud800\n"),
        (Rude(), "<Rude: its repr raised RuntimeError>"),
        (list(range(500)), [*range(200), "… 300 more"]),
        (dict.fromkeys(map(str, range(201)), 0), {**dict.fromkeys(map(str, range(200)), 0), "…": "1 more"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_value_can_be_recorded(path, value, kept):
    with Journal(path) as journal:
        assert journal.record("note", it=value).data == {"it": kept}
    assert next(read(path)).data == {"it": kept}


def test_a_value_that_holds_itself(path):
    loop: list[object] = []
    loop.append(loop)
    with Journal(path) as journal:
        journal.record("note", it=loop)
    assert len(list(read(path))) == 1


anything = st.recursive(
    st.none() | st.floats() | st.integers() | st.text(st.characters(exclude_categories=())) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner),
    max_leaves=6,
)


@given(data=st.dictionaries(st.text(), anything, max_size=4), bytes_max=st.integers(512, 2_000))
def test_a_line_keeps_its_bound_and_is_json(data, bytes_max):
    line = module._line(Event(2**60, 1e9, "fault-fired", {k: module._plain(v) for k, v in data.items()}), bytes_max)
    assert len(line) <= bytes_max
    assert line.count(b"\n") == 1
    assert json.loads(line)["kind"] == "fault-fired"


def test_a_long_event_is_cut_and_says_so(path):
    with Journal(path, event_bytes_max=600) as journal:
        journal.record("outcome", outcome="violation", detail="x" * 5_000)
        assert len(journal.events()[0].data["detail"]) == 5_000
    line = path.read_text()
    assert len(line) <= 600
    found = json.loads(line)
    assert found["cut"].startswith("from 5")
    assert found["data"]["outcome"] == "violation"
    assert found["data"]["detail"].endswith("x…")


def test_the_file_is_bounded_and_keeps_the_verdict(path):
    with Journal(path, events_max=3, remember=2) as journal:
        for index in range(10):
            journal.record("step", index=index)
        journal.record("verdict", verdict="violated")
        remembered = journal.events()
    events = list(read(path))
    assert [event.kind for event in events] == ["step", "step", "step", "note", "verdict"]
    assert "after 3 events" in events[3].data["cut"]
    assert events[-1].seq == 10
    assert [event.seq for event in remembered] == [9, 10]


# --- what the disk does ------------------------------------------------------------------


def test_a_full_disk_is_counted_survived_and_said(path, monkeypatch):
    write = os.write
    full = False

    def half(descriptor, data):
        if full and len(data) < 20:
            raise OSError(errno.ENOSPC, "full")
        return write(descriptor, data[: len(data) // 2] if full else data)

    monkeypatch.setattr(module.os, "write", half)
    with Journal(path) as journal:
        journal.record("step", index=0)
        full = True
        journal.record("step", index=1)
        journal.record("step", index=2)
        assert journal.lost == 2
        assert [event.seq for event in read(path)] == [0]
        full = False
        journal.record("step", index=3)
        journal.record("step", index=4)
        assert journal.lost == 2
        assert len(journal.events()) == 5
    events = list(read(path))
    assert [(event.seq, event.kind) for event in events] == [(0, "step"), (3, "note"), (3, "step"), (4, "step")]
    assert events[1].data == {"lost": 2}


def test_a_short_write_is_completed(path, monkeypatch):
    write = os.write
    monkeypatch.setattr(module.os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    with Journal(path) as journal:
        journal.record("step", index=0)
    assert [event.data for event in read(path)] == [{"index": 0}]


def test_a_real_full_device_and_a_path_that_cannot_be(tmp_path):
    for path in ("/dev/full", "/proc/nowhere/journal", tmp_path):
        with Journal(path) as journal:
            journal.record("step", index=0)
            assert journal.lost == 1
            assert len(journal.events()) == 1


def test_a_forked_child_does_not_write_between(path):
    with Journal(path) as journal:
        journal.record("step", index=0)
        journal._owner = -1  # as a child sees it
        journal.record("step", index=1)
        assert journal.lost == 1
    assert len(list(read(path))) == 1


# --- lifetimes ---------------------------------------------------------------------------


def test_an_earlier_journal_of_that_name_is_replaced(path):
    for _ in range(2):
        with Journal(path) as journal:
            journal.record("example", number=1)
            journal.close()
            journal.record("note", text="after closing")
    assert [event.kind for event in read(path)] == ["example", "note"]


def test_restarting_begins_from_nothing(path):
    with Journal(path, ticking(), events_max=1) as journal:
        journal.record("example", number=1)
        journal.record("step", index=0)
        journal.restart()
        assert journal.events() == ()
        journal.record("example", number=2)
        assert [(event.seq, event.t_s, event.data) for event in read(path)] == [(0, 0.5, {"number": 2})]
        other = path.with_name("other.jsonl")
        journal.restart(other)
        journal.record("example", number=3)
    assert [event.data for event in read(path)] == [{"number": 2}]
    assert [event.data for event in read(other)] == [{"number": 3}]


def test_every_torn_end_is_read_around(path):
    with Journal(path) as journal:
        for index in range(3):
            journal.record("step", index=index, text="é\ud800")
    whole = path.read_bytes()
    ends = [position for position, byte in enumerate(whole, 1) if byte == 10]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        # A last line that lacks only its end is still whole.
        assert len(list(read(path))) == sum(end - 1 <= length for end in ends)


def test_rubbish_in_the_middle_becomes_a_note(path):
    with Journal(path) as journal:
        journal.record("step", index=0)
    good = path.read_bytes()
    path.write_bytes(good + b'\xff{"seq"\n[]\n{}\n' + good)
    events = list(read(path))
    assert [event.kind for event in events] == ["step", "note", "note", "note", "step"]
    assert events[1].data == {"unreadable": '\ufffd{"seq"'}
    assert events[1].seq == 0
    with pytest.raises(FileNotFoundError):
        list(read(path.with_name("none")))
