"""A full disk by seccomp notification: real system calls of real processes, each in a helper of its own.

The helpers fork and trap themselves; pytest, which may have threads, only starts them.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colos.chaos.mechanisms.diskusage import reach

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
BLOCK = 4096
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
USERS = ["as we are", "nobody"] if os.geteuid() == 0 and shutil.which("setpriv") else ["as we are"]


def environment():
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}


def unavailable():
    source = "from colos.chaos.mechanisms.syscalls import probe; print(probe() or '')"
    asked = subprocess.run(
        [sys.executable, "-c", source], env=environment(), capture_output=True, text=True, timeout=20
    )
    return asked.stdout.strip() or asked.stderr.strip()


WHY_NOT = unavailable()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


@pytest.fixture
def scenario():
    # Not tmp_path: that lies below a directory which only its owner may enter.
    with tempfile.TemporaryDirectory(prefix="colos-quota-") as base:
        os.chmod(base, 0o777)
        for name in ("data", "elsewhere"):
            os.mkdir(f"{base}/{name}")
            os.chmod(f"{base}/{name}", 0o777)

        def run(name, user="as we are"):
            command = [sys.executable, str(HERE / "diskquota_scenarios.py"), name, f"{base}/data", f"{base}/elsewhere"]
            prefix = NOBODY if user == "nobody" else []
            done = subprocess.run([*prefix, *command], env=environment(), capture_output=True, text=True, timeout=30)
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        yield run


@pytest.mark.parametrize("user", USERS)
def test_nothing_free_is_enospc(scenario, user):
    got = scenario("full", user)
    assert got["got"] == [BLOCK, BLOCK, "ENOSPC"]
    assert "[Errno 28] No space left on device" in got["text"]
    assert got["size"] == 2 * BLOCK
    assert got["hits"] == {"ENOSPC": got["hits"]["ENOSPC"]}
    assert got["hits"]["ENOSPC"] >= 2


@pytest.mark.parametrize("user", USERS)
def test_a_write_is_cut_short_exactly_at_the_last_blocks_end(scenario, user):
    assert scenario("short_write", user) == {
        "first": 100,
        "got": [2 * BLOCK - 100, 2 * BLOCK, "ENOSPC"],
        "right": True,
        "hits": {"short": 1, "ENOSPC": 1},
    }


def test_every_writing_call_is_cut_short(scenario):
    for name, got in scenario("every_writer").items():
        assert got == [BLOCK, BLOCK, "ENOSPC"], name


def test_copies_inside_the_kernel_are_cut_short_with_their_offsets_right(scenario):
    got = scenario("transfers")
    assert got.pop("copyfile") == "ENOSPC"
    for name, (first, second, right, position, moved) in got.items():
        assert (first, second, right) == (BLOCK, "ENOSPC", True), name
        expected = (0, 0) if name == "splice" else (0, BLOCK) if name.endswith(" at") else (BLOCK, 0)
        assert (position, moved) == expected, name


def test_what_is_allocated_can_be_written_in_place(scenario):
    got = scenario("in_place")
    assert got == {
        "overwrite": 2 * BLOCK,
        "tail": [BLOCK - 100, "ENOSPC"],
        "tail_right": True,
        "nothing": 0,
        "read_only": "EBADF",
        "bad_addresses": ["EFAULT", "EFAULT"],
        "hits": {"short": 1, "ENOSPC": 1},
    }


def test_freed_space_is_usable_and_no_more(scenario):
    assert scenario("freed") == {
        "before": "ENOSPC",
        "after_truncate": [BLOCK, "ENOSPC"],
        "after_unlink": [BLOCK, "ENOSPC"],
    }


@pytest.mark.parametrize("user", USERS)
def test_a_deleted_file_keeps_its_space_until_its_last_descriptor_is_closed(scenario, user):
    assert scenario("deleted_but_open", user) == {
        "held": [BLOCK, BLOCK],
        "growing": "ENOSPC",
        "duplicated": "ENOSPC",
        "closed": [2 * BLOCK, "ENOSPC"],
        "nameless": ["ENOSPC", "ENOSPC"],
        "nameless_closed": [None, 1],
    }


def test_hard_links_count_once_and_holes_not_at_all(scenario):
    assert scenario("hard_links_and_holes") == {
        "hole": [1, 100],
        "other_name": 2 * BLOCK,
        "no_more": "ENOSPC",
        "across": BLOCK,
    }


def test_fallocate_gets_all_or_nothing(scenario):
    assert scenario("allocate") == ["ENOSPC", 0, None, BLOCK, "ENOSPC", 0, 1, "ENOSPC", 0]


@pytest.mark.parametrize("user", USERS)
def test_inodes_run_out_for_every_creating_call_and_for_nothing_else(scenario, user):
    got = scenario("inodes", user)
    assert got["last_one"] is None
    assert set(got["got"].values()) == {"ENOSPC"}, got["got"]
    assert got["hits"] == {"ENOSPC": len(got["got"])}
    refused_by_the_kernel = {"exclusive": "EEXIST", "exclusive_dangling": "EEXIST", "exists": "EEXIST"}
    refused_by_the_kernel |= {"no_parent": "ENOENT", "bad_address": "EFAULT"}
    assert {name: why for name, why in got["allowed"].items() if why is not None} == refused_by_the_kernel
    assert got["after_rmdir"] == [None, "ENOSPC"]


def test_lifting_ends_it_and_a_new_limit_starts_from_what_is_used(scenario):
    assert scenario("lifted") == {
        "refused": ["ENOSPC"],
        "size": 5 * BLOCK,
        "hits_kept": {"ENOSPC": 1},
        "hits_reset": {},
        "relative": [None, "ENOSPC"],
    }


@pytest.mark.parametrize("user", USERS)
def test_whatever_is_not_a_file_below_the_root_is_untouched(scenario, user):
    got = scenario("others_untouched", user)
    assert got == {
        "pipe": [5000, 5000],
        "socket": [1, "s"],
        "tty": 1,
        "memory_file": BLOCK,
        "closed": "EBADF",
        "sendfile_socket": 100,
        "hits": {},
    }


@pytest.mark.parametrize("user", USERS)
def test_any_program_started_from_there_meets_the_full_disk(scenario, user):
    got = scenario("programs", user)
    assert got["dd"] == got["cp"] == got["cat"] == got["background"] == [True, True]
    assert got["echo"][0]  # dash says "I/O error"
    assert got["no_inode"] == [True, False]
    assert got["dd_size"] == 2 * BLOCK


def test_a_document_store_meets_oserror_28_after_a_torn_save(scenario):
    assert scenario("document") == [None, "ENOSPC", 2 * BLOCK, "ENOSPC"]


def test_threads_together_get_exactly_what_there_is(scenario):
    got = scenario("threads")
    assert got["made"] == [8, 12, 10]  # two of the ten were made before
    assert got["written"] == [16 * BLOCK, 16 * BLOCK]


def test_processes_together_get_exactly_what_there_is(scenario):
    assert scenario("processes") == 16


def test_callers_that_are_let_go_together_do_not_get_the_same_inode(scenario):
    assert scenario("creating_together") == 2


def test_a_large_write_arrives_whole_or_as_far_as_there_is_room(scenario):
    assert scenario("large") == [8 << 20, True, 8 << 20, True]


def test_space_given_back_by_an_idle_process_is_there_at_once(scenario):
    assert scenario("shrinking_neighbour") is None


def test_the_callers_own_file_size_limit_stays_the_kernels_business(scenario):
    assert scenario("file_size_limit") == [BLOCK + 50, "EFBIG"]


def test_direct_io_is_cut_short_too(scenario):
    got = scenario("direct")
    if got is None:
        pytest.skip("no O_DIRECT on this file system")
    assert got == [BLOCK, "ENOSPC"]


def test_callers_killed_while_they_wait_harm_nobody(scenario):
    assert scenario("killed_while_waiting") is None


@pytest.mark.skipif(os.geteuid() == 0 and USERS == ["as we are"], reason="needs setpriv to be an ordinary user")
@pytest.mark.as_nobody
def test_a_problem_while_deciding_lets_the_call_go_and_is_recorded(scenario):
    written, hits, errors = scenario("not_to_be_looked_into", USERS[-1])
    assert (written, hits) == (1, {})
    assert len(errors) == 1
    assert "write of " in errors[0]
    assert "PermissionError" in errors[0]


# --- the arithmetic, in this process ---------------------------------------------------------


@given(
    st.sets(st.integers(0, 8)),
    st.integers(0, 9 * BLOCK),
    st.integers(1, 5 * BLOCK),
    st.integers(0, 6),
)
@settings(database=None)
def test_how_far_a_write_gets_is_what_counting_block_by_block_says(has, start, length, free):
    ranges = [(block, block + 1) for block in sorted(has)]
    at, taken = start, 0
    while at < start + length:
        if at // BLOCK not in has:
            if taken == free:
                break
            taken += 1
        at = (at // BLOCK + 1) * BLOCK
    assert reach(ranges, start, start + length, free) == (min(at, start + length), taken)


# --- the same answers as a real, small disk -------------------------------------------------

lengths = st.one_of(
    st.integers(0, 3 * BLOCK), st.sampled_from([n * BLOCK + d for n in range(4) for d in (-1, 0, 1) if n or d >= 0])
)
names = st.sampled_from(["a", "a", "b", "d/a"])
directories = st.sampled_from(["d", "e"])
slots = st.integers(0, 1)
step = st.one_of(
    st.tuples(st.just("write"), names, lengths, lengths),
    st.tuples(st.just("append"), names, lengths),
    st.tuples(st.just("write"), names, lengths, st.integers(1, 9)),
    st.tuples(st.just("write"), names, st.just(0), lengths),
    st.tuples(st.just("truncate"), names, lengths),
    st.tuples(st.just("unlink"), names),
    st.tuples(st.just("rename"), names, names),
    st.tuples(st.just("mkdir"), directories),
    st.tuples(st.just("rmdir"), directories),
    st.tuples(st.just("symlink"), names, names.map(lambda name: name[-1])),
    st.tuples(st.just("hold"), slots, names),
    st.tuples(st.just("hold_nameless"), slots),
    st.tuples(st.just("write_held"), slots, lengths),
    st.tuples(st.just("release"), slots),
)


@contextlib.contextmanager
def both_disks(backing):
    with tempfile.TemporaryDirectory(prefix="colos-quota-") as base:
        command = ["unshare", "--mount", "--propagation", "private", sys.executable]
        helper = subprocess.Popen(
            [*command, str(HERE / "diskquota_model.py"), base, backing],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with helper:
            try:
                if helper.stdout.readline() != "ready\n":
                    pytest.skip(f"no tmpfs can be mounted here: {helper.stderr.read().strip()[-300:]}")

                def ask(example):
                    helper.stdin.write(json.dumps(example) + "\n")
                    helper.stdin.flush()
                    line = helper.stdout.readline()
                    assert line, helper.stderr.read()
                    return json.loads(line)

                yield ask
            finally:
                helper.stdin.close()
                helper.wait(20)


@pytest.mark.parametrize("backing", ["where temporary files are", "tmpfs"])
def test_it_answers_as_a_real_tmpfs_of_that_size(backing):
    answers = set()
    with both_disks(backing) as ask:

        @settings(
            max_examples=150,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
            print_blob=False,
        )
        @given(st.integers(1, 6), st.integers(1, 6), st.lists(step, min_size=1, max_size=25))
        def same(blocks, inodes, steps):
            got = ask({"blocks": blocks, "inodes": inodes, "steps": steps})
            real, quota = ([*zip(steps, disk[0], strict=True)] for disk in (got["real"], got["quota"]))
            assert quota == real
            assert got["quota"][1] == got["real"][1]
            answers.update(got["hits"])

        same()
    assert answers == {"ENOSPC", "short"}
