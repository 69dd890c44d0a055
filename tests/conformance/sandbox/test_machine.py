"""What a system finds inside a sandbox."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox_bench import MIB, ROOT, Agent, Sessions, agent_in

from colos.chaos.sandbox.session import Session


@pytest.fixture
def inside(agent: Agent) -> Agent:
    return agent


@pytest.fixture(scope="module")
def machine(sessions: Sessions) -> Iterator[Agent]:
    """One of namespaces: what a bare sandbox cannot promise."""
    small = {"data_bytes": MIB, "data_inodes": 32, "run_bytes": 2 * MIB, "tmp_bytes": 3 * MIB}
    with agent_in(sessions["namespaces"], **small) as agent:
        yield agent


# --- in both tiers -----------------------------------------------------------------------


def test_a_connection_that_does_not_come_about_in_time_is_a_timeout(agent: Agent) -> None:
    """A listener whose queue is full, as of a server without descriptors: a client sees TimeoutError, in both tiers."""
    agent.do(
        "import socket; server = socket.socket(); server.bind(('127.0.0.1', 0)); server.listen(0)\n"
        "waiting = [socket.socket() for _ in range(4)]\n"
        "for each in waiting: each.setblocking(False); each.connect_ex(server.getsockname())"
    )
    with pytest.raises(TimeoutError):
        agent.sandbox.connect_tcp("127.0.0.1", agent.ask("server.getsockname()[1]"))


def test_starts_in_an_empty_data_directory(inside: Agent) -> None:
    assert inside.ask("os.getcwd()") == inside.sandbox.place.data
    assert inside.ask("os.listdir('.')") == []


def test_names_its_directories_in_the_environment(inside: Agent) -> None:
    place = inside.sandbox.place
    environment = inside.ask("dict(os.environ)")
    assert environment["HOME"] == place.home
    assert environment["TMPDIR"] == place.tmp
    assert environment["XDG_RUNTIME_DIR"] == environment["COLOS_RUN"] == place.run
    assert environment["COLOS_DATA"] == place.data
    for directory in (place.data, place.run, place.home, place.tmp):
        assert (
            inside.refused(f"open({directory + '/probe'!r}, 'w').write('x'); os.unlink({directory + '/probe'!r})") == 0
        )


def test_a_file_is_the_same_from_both_sides(inside: Agent) -> None:
    inside.do("open('both', 'w').write('sides')")
    assert Path(inside.running.path("{data}/both")).read_text() == "sides"
    inside.do("os.unlink('both')")


def test_the_user_is_the_same_inside(inside: Agent) -> None:
    assert inside.ask("(os.getuid(), os.geteuid(), os.getgid(), os.getegid())") == (
        os.getuid(),
        os.geteuid(),
        os.getgid(),
        os.getegid(),
    )
    inside.do("open('mine', 'w').close()")
    assert os.stat(inside.running.path("{data}/mine")).st_uid == os.getuid()
    inside.do("os.unlink('mine')")


def test_has_no_capability_and_cannot_gain_one(inside: Agent) -> None:
    lines = inside.ask("open('/proc/self/status').read()").splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert status["NoNewPrivs"].strip() == "1"
    if os.getuid() == 0 or inside.sandbox.tier == "namespaces":
        assert int(status["CapBnd"], 16) == 0


def test_inherits_nothing_of_the_harness(inside: Agent) -> None:
    """Only the standard descriptors, the agent's own socket and connection, and the listing's."""
    held = inside.ask(
        "[os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')"
        " if int(n) > 2 and os.path.exists(f'/proc/self/fd/{n}')]"
    )
    assert len(held) == 2, held
    assert all(name.startswith("socket:") for name in held)


def test_no_signal_is_blocked_or_ignored_but_pythons_own(inside: Agent) -> None:
    assert inside.ask("signal.pthread_sigmask(signal.SIG_BLOCK, [])") == set()
    kept = ("SIGTERM", "SIGHUP", "SIGCHLD", "SIGUSR1")
    assert inside.ask(f"[signal.getsignal(getattr(signal, name)) == signal.SIG_DFL for name in {kept}]") == [True] * 4


def test_data_and_run_are_apart(inside: Agent) -> None:
    place = inside.sandbox.place
    assert not place.run.startswith(place.data + "/")
    if inside.sandbox.tier == "namespaces":
        assert inside.ask(f"os.stat({place.data!r}).st_dev != os.stat({place.run!r}).st_dev")


# --- of namespaces only ------------------------------------------------------------------


def test_has_its_own_process_table(machine: Agent) -> None:
    assert machine.ask("os.getppid()") == 1
    pids = machine.ask("sorted(int(name) for name in os.listdir('/proc') if name.isdigit())")
    assert pids == [1, machine.sandbox.main_pid]


def test_has_its_own_loopback_and_it_is_up(machine: Agent) -> None:
    with socket.socket() as outside:
        outside.bind(("127.0.0.1", 0))
        outside.listen()
        port = outside.getsockname()[1]
        talk = (
            "server = socket.socket(); server.bind(('127.0.0.1', {port})); server.listen();"
            "client = socket.create_connection(('127.0.0.1', {port}), 5); peer, _ = server.accept();"
            "client.sendall(b'x'); result = peer.recv(1);"
            "[end.close() for end in (client, peer, server)]"
        )
        assert machine.refused(f"socket.create_connection(('127.0.0.1', {port}), 5)") == errno.ECONNREFUSED
        assert machine.do(talk.format(port=port)) == b"x"  # the very port that is taken outside
    assert machine.ask("[name for _, name in socket.if_nameindex()]") == ["lo"]


def test_has_its_own_name(machine: Agent) -> None:
    assert machine.ask("socket.gethostname()") == "colos"
    assert socket.gethostname() != "colos"


@pytest.mark.parametrize(
    "where", ["/etc", "/", "/usr", "/dev", "/sys", "/proc/sys/kernel", str(ROOT), str(ROOT / "tests")]
)
def test_the_rest_of_the_file_system_is_read_only(machine: Agent, where: str) -> None:
    number = machine.refused(f"open({where + '/colos-probe'!r}, 'w')")
    assert number in (
        (errno.EROFS,)
        if os.getuid() == 0 and not where.startswith("/proc")
        else (errno.EROFS, errno.EACCES, errno.ENOENT)
    )
    assert not Path(where, "colos-probe").exists()


@pytest.mark.parametrize("where", ["/tmp", "/var/tmp", "/dev/shm", "{home}", "{tmp}", "{data}", "{run}"])
def test_what_is_written_stays_inside(machine: Agent, where: str) -> None:
    where = machine.sandbox.place.expand(where)
    name = next(tempfile._get_candidate_names())
    if where == "/tmp" and str(ROOT).startswith("/tmp"):
        pytest.skip("the project is there, so it stays in sight")
    machine.do(f"open('{where}/{name}', 'w').write('x'); os.unlink('{where}/{name}')")
    assert machine.ask(f"os.statvfs({where!r}).f_fsid != 0 or True")
    machine.do(f"open('{where}/{name}', 'w').close()")
    assert not Path(where, name).exists()
    machine.do(f"os.unlink('{where}/{name}')")


def test_what_was_under_tmp_is_out_of_sight(machine: Agent, tmp_path: Path) -> None:
    if not str(tmp_path).startswith("/tmp/") or os.getcwd().startswith("/tmp"):
        pytest.skip("the temporary directory is elsewhere, or the project is there")
    assert machine.ask(f"os.path.exists({str(tmp_path)!r})") is False


@pytest.mark.parametrize(("where", "size"), [("{data}", MIB), ("{run}", 2 * MIB), ("{tmp}", 3 * MIB)])
def test_a_disk_holds_its_size_and_no_more(machine: Agent, where: str, size: int) -> None:
    path = machine.sandbox.place.expand(where) + "/filler"
    machine.do(f"fd = os.open({path!r}, os.O_CREAT | os.O_WRONLY)")
    try:
        assert machine.refused(f"os.posix_fallocate(fd, 0, {size} + 1)") == errno.ENOSPC
        assert machine.refused(f"os.posix_fallocate(fd, 0, {size} - 65536)") == 0
    finally:
        machine.do(f"os.close(fd); os.unlink({path!r})")


def test_the_data_disk_holds_its_inodes_and_no_more(machine: Agent) -> None:
    made = machine.do(
        "made = []\n"
        "try:\n"
        "    while len(made) < 100: os.mknod(f'n{len(made)}'); made.append(f'n{len(made)}')\n"
        "except OSError as error: result = (len(made), error.errno)\n"
        "finally: [os.unlink(name) for name in made]"
    )
    assert made == (31, errno.ENOSPC)  # the directory itself is the thirty-second


def test_a_full_data_disk_leaves_the_run_directory_alone(machine: Agent) -> None:
    machine.do(f"fd = os.open('filler', os.O_CREAT | os.O_WRONLY); os.posix_fallocate(fd, 0, {MIB}); os.close(fd)")
    try:
        assert machine.refused("put('more')") == errno.ENOSPC
        path = machine.sandbox.place.run + "/works"
        machine.do(f"open({path!r}, 'w').write('works'); print('said', flush=True)")
        assert Path(machine.sandbox.outside(path)).read_text() == "works"
        assert "said" in machine.running.output()
    finally:
        machine.do("os.unlink('filler'); os.unlink('more')")


def test_no_mount_can_be_changed_from_inside(machine: Agent) -> None:
    remount = (
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True);"
        "failed = libc.mount(b'none', {path!r}, None, 32, b'');"
        "result = ctypes.get_errno() if failed else 0"
    )
    for path in (b"/", machine.sandbox.place.data.encode()):
        assert machine.do(remount.format(path=path)) == errno.EPERM


def test_the_keeper_cannot_be_killed_from_inside(machine: Agent) -> None:
    machine.do("os.kill(1, signal.SIGKILL)")  # the kernel drops it: it is the machine's first process
    assert machine.ask("os.getppid()") == 1


# --- what stays in sight, and what is opened -----------------------------------------------


def test_writable_opens_exactly_that(namespaces: Session, tmp_path: Path) -> None:
    opened, closed = tmp_path / "opened", tmp_path / "closed"
    opened.mkdir()
    closed.mkdir()
    file = tmp_path / "file"
    file.write_text("old")
    with agent_in(namespaces, kept=(str(tmp_path), str(ROOT)), writable=(str(opened), str(file))) as agent:
        agent.do(f"open('{opened}/new', 'w').write('from inside')")
        assert (opened / "new").read_text() == "from inside"
        agent.do(f"open('{file}', 'w').write('new')")
        assert file.read_text() == "new"
        assert agent.refused(f"open('{closed}/new', 'w')") == errno.EROFS
        assert agent.refused(f"open('{tmp_path}/new', 'w')") == errno.EROFS


def test_writable_is_shown_even_under_what_is_covered(namespaces: Session, tmp_path: Path) -> None:
    if not str(tmp_path).startswith("/tmp/"):
        pytest.skip("the temporary directory is not one that a sandbox covers")
    with agent_in(namespaces, kept=(str(ROOT),), writable=(str(tmp_path),)) as agent:
        agent.do(f"open('{tmp_path}/new', 'w').write('from inside')")
        assert agent.ask(f"os.listdir({str(tmp_path.parent)!r})") == [tmp_path.name]
    assert (tmp_path / "new").read_text() == "from inside"


def test_kept_paths_stay_in_sight_and_read_only(namespaces: Session, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("answer = 42")
    with agent_in(namespaces, kept=(str(tmp_path), str(ROOT))) as agent:
        assert agent.ask(f"open('{tmp_path}/module.py').read()") == "answer = 42"
        assert agent.refused(f"open('{tmp_path}/module.py', 'a')") == errno.EROFS
        assert agent.refused(f"os.mkdir('{tmp_path}/new')") == errno.EROFS


def test_two_sandboxes_see_nothing_of_each_other(namespaces: Session) -> None:
    with agent_in(namespaces) as one, agent_in(namespaces) as other:
        one.do("open('mine', 'w').close()")
        assert other.ask("os.listdir('.')") == []
        assert len(other.ask("[name for name in os.listdir('/proc') if name.isdigit()]")) == 2
