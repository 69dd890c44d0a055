"""What a process of the system sees of each kind of fault, with its own eyes.  A new kind gets one entry here.

For instance::

    "no-entropy": Probe("result = len(os.urandom(8))", before=8, during="EAGAIN"),
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import EllipsisType

from sandbox_bench import ROOT

from colos.chaos.mechanisms import threads


@dataclass(frozen=True)
class Probe:
    """Python for the agent to run, and what it is expected to see.

    `look` is run in the agent's namespace (see `sandbox_agent`: `put`, `fork`, `idle`, `spin` are
    there; and `AT_HAND`: the file `kept`, the connection `near` and `far`, its `door`, the letter box `post`).
    What is seen is its `result`, or the name of the errno that it met.  `before`, `during`
    and `after` are that value or a predicate of it; after the healing it is as before, unless said
    otherwise.  It is looked again, up to a deadline, until the expected is seen.  `prepare` is run
    once, first.  `target` is who is hit; with "agent/victim", `prepare` forks that one.
    `arguments` are the step's.
    """

    look: str
    before: object
    during: object
    after: object | EllipsisType = ...
    prepare: str = ""
    target: str = "agent"
    arguments: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class ShownBy:
    """Another test that shows it, where the agent cannot: its file and name, and why.  For very few kinds."""

    test: str
    reason: str


VICTIM = "victim = fork('victim', idle)"
#: The signal that ended the victim, or 0.
ENDED = """
ended = os.waitid(os.P_PID, victim, os.WEXITED | os.WNOHANG | os.WNOWAIT)
result = ended.si_status if ended else 0
"""
#: The victim's state, as /proc has it.
STATE = "result = open(f'/proc/{victim}/stat').read().rpartition(')')[2].split()[0]"


def ends_by(signal: int, **arguments: object) -> Probe:
    return Probe(
        ENDED, before=0, during=signal, after=signal, prepare=VICTIM, target="agent/victim", arguments=arguments
    )


def stops(**arguments: object) -> Probe:
    return Probe(STATE, before="S", during="T", prepare=VICTIM, target="agent/victim", arguments=arguments)


# --- time ------------------------------------------------------------------------------------

#: Whether the agent is continued within a short while, that is, whether somebody stops and continues it.
CONTINUES = """
continued.clear()
deadline = time.monotonic() + 0.03
while not continued and time.monotonic() < deadline:
    pass
result = bool(continued)
"""
CONTINUED = "continued = []; signal.signal(signal.SIGCONT, lambda *_: continued.append(True))"
#: How many busy processes there are for its sake, children of somebody above it, that have had CPU time.
RIVALS = """
def read(pid, name):
    with open(f'/proc/{pid}/{name}') as file: return file.read()
above = [os.getppid()]
while parent := int(read(above[-1], 'stat').rpartition(')')[2].split()[1]): above.append(parent)
beside = {pid for one in above for pid in read(one, f'task/{one}/children').split()}
result = sum(read(pid, 'comm') == 'colos-rival\\n' and cpu_of(pid) > 0 for pid in beside)
"""
#: How long a call takes that is delayed, at least; undelayed it is quicker, sooner or later, on any machine.
LATE_S = 0.1


def takes_longer(call: str, at_least: float = LATE_S, prepare: str = "", **arguments: object) -> Probe:
    """A busy machine can only make it longer."""
    look = f"began = time.monotonic()\n{call}\nresult = time.monotonic() - began"
    return Probe(
        look,
        before=lambda took: took < at_least,
        during=lambda took: took >= at_least,
        prepare=prepare,
        arguments=arguments,
    )


#: What colos.runtime.wall_time() is beside the true time, in minutes; the agent has no other module of ColOS.
RUNTIME_CLOCK = f"""
from importlib import util
its = util.spec_from_file_location('clock', {str(ROOT / "colos/runtime/clock.py")!r})
clock = util.module_from_spec(its)
sys.modules['clock'] = clock
its.loader.exec_module(clock)
"""

# --- files and connections -------------------------------------------------------------------

WRITE = "result = put('kept', b'x' * 1000)"
#: What a write said, and what is in the file.
WRITTEN = """
try: said = put('kept', b'x' * 1000)
except OSError as error: said = errno.errorcode[error.errno]
result = said, os.path.getsize('kept')
"""
FORK = """
child = os.fork()
if child == 0: os._exit(0)
result = os.waitpid(child, 0)[1]
"""
THREAD = """
import _thread
try: _thread.start_new_thread(int, ()); result = 'made'
except RuntimeError as error: result = str(error)
"""
CONNECT = "with socket.create_connection(door.getsockname()): door.accept()[0].close()"
#: A datagram to itself, which has come when it is sent, or never, or not yet.
LETTER = "post.sendto(b'x', post.getsockname()); result = post.recv(1)"
UNBLOCKED = "near.setblocking(False); far.setblocking(False)"
#: Whether much comes through a new connection while it waits.
MUCH = """
one = socket.create_connection(door.getsockname())
other, _ = door.accept()
with one, other:
    one.setblocking(False)
    other.settimeout(0.2)
    sent, got = one.send(b'x' * 300000), 0
    try:
        while got < sent: got += len(other.recv(65536))
    except TimeoutError: pass
    result = got == sent
"""
#: A victim at the other end of the connection, who says again what it hears.
ECHO = """
def echo():
    near.close()
    while heard := far.recv(100): far.sendall(heard)
victim = fork('victim', echo)
far.close()
near.settimeout(0.2)
"""
ECHOES = """
near.send(b'x')
try: result = near.recv(1)
except TimeoutError: result = 'silence'
"""
LOOK_UP = """
try: result = {found[4][0] for found in socket.getaddrinfo('localhost', 1)}
except socket.gaierror as error: result = error.errno
"""
LOCAL = "time.tzset(); result = time.localtime(0)[:5]"
#: Through the C library, for Python tries again by itself.  PEP 475
INTERRUPTED = """
result = False
for _ in range(20):
    if libc.write(pipe[1], b'x', 1) < 0: result = ctypes.get_errno() == errno.EINTR or result
    else: os.read(pipe[0], 1)
"""
#: A victim that takes 16 MiB more at each signal.
GROWER = """
def grow():
    taken = []
    signal.signal(signal.SIGUSR1, lambda *_: taken.append(bytearray(b'x') * (16 << 20)))
    while True: signal.pause()
victim = fork('victim', grow)
"""


# --- hardware --------------------------------------------------------------------------------


def reads(pattern: str, value: str, **arguments: object) -> Probe:
    """Files of the machine that all show a value which none has shown before."""
    return Probe(
        f"import glob; result = {{open(path).read().strip() for path in glob.glob({pattern!r})}}",
        before=lambda seen: value not in seen,
        during={value},
        arguments=arguments,
    )


def counts(pattern: str, count: int, **arguments: object) -> Probe:
    """Counters that go up, and all by the same."""
    return Probe(
        "result = {now - first.get(path, 0) for path, now in numbers().items()}",
        before=lambda seen: seen <= {0},
        during={count},
        prepare=f"import glob\n"
        f"def numbers(): return {{path: int(open(path).read(), 0) for path in glob.glob({pattern!r})}}\n"
        "first = numbers()",
        arguments=arguments,
    )


MINUTES_LEFT = """
import glob
def number(path):
    with open(path) as file: return int(file.read())
result = set()
for store, rate in (('energy_now', 'power_now'), ('charge_now', 'current_now')):
    for path in glob.glob(f'/sys/class/power_supply/BAT*/{rate}'):
        result.add(round(60 * number(path.replace(rate, store)) / max(1, number(path))))
"""
CORES = len(os.sched_getaffinity(0))
MOVED = time.gmtime(345 * 60)[:5]

PROBES: dict[str, Probe | ShownBy] = {
    "battery-low": reads("/sys/class/power_supply/BAT*/capacity", "3", percent=3),
    "bit-rot": Probe(
        "with open('kept', 'rb') as file: result = file.read() == b'x' * 10000",
        before=True,
        during=False,
        after=False,
        arguments={"path": "kept"},
    ),
    "clock-drift": Probe(
        "a = time.time(), time.monotonic(); time.sleep(0.03); b = time.time(), time.monotonic()\n"
        "result = (b[0] - a[0]) / (b[1] - a[1])",
        before=lambda rate: 0.5 < rate < 2,
        during=lambda rate: rate > 5,
        arguments={"rate": 10},
    ),
    "clock-jump": Probe(
        "result = round((time.time() - time.monotonic() - first) / 60)",
        before=0,
        during=60,
        prepare="first = time.time() - time.monotonic()",
    ),
    "clock-stopped": Probe(
        "first = time.time(); time.sleep(0.01); result = time.time() > first", before=True, during=False
    ),
    "connect-fails": Probe(CONNECT, before=None, during="ECONNREFUSED"),
    "connection-refused": Probe(CONNECT, before=None, during="ECONNREFUSED"),
    "connection-reset": Probe(
        "result = near.recv(1)", before="EAGAIN", during="ECONNRESET", after="ENOTCONN", prepare=UNBLOCKED
    ),
    "cpu-fewer": Probe("result = len(os.sched_getaffinity(0))", before=CORES, during=CORES - 1),
    "cpu-offline": Probe("result = os.cpu_count()", before=os.cpu_count(), during=1),
    "cpu-pin": Probe("result = len(os.sched_getaffinity(0))", before=CORES, during=1),
    "cpu-priority": Probe("result = os.sched_getscheduler(0)", before=os.SCHED_OTHER, during=threads.lowest_policy()),
    "cpu-rival": Probe(RIVALS, before=0, during=2 * min(16, CORES), arguments={"rivals": 2}),
    "cpu-starvation": Probe(CONTINUES, before=False, during=True, prepare=CONTINUED),
    "crash": ends_by(11),
    "cut-reads": Probe(
        "a, b = socket.socketpair()\nwith a, b: a.send(b'hello'); result = b.recv(100)", before=b"hello", during=b"h"
    ),
    "descriptor-exhaustion": Probe(
        "result = os.close(os.open('/dev/null', os.O_RDONLY))", before=None, during="EMFILE"
    ),
    "disk-failing": counts("/sys/block/*/device/ioerr_cnt", 16),
    "disk-full": Probe(
        "result = put('probe', b'x' * 5000, os.O_CREAT | os.O_WRONLY | os.O_APPEND)", before=5000, during="ENOSPC"
    ),
    "disk-read-only": Probe(WRITE, before=1000, during="EROFS"),
    "fan-stopped": reads("/sys/class/hwmon/hwmon*/fan*_input", "7", rpm=7),
    "file-table-full": Probe("result = os.close(os.open('/dev/null', os.O_RDONLY))", before=None, during="ENFILE"),
    "file-vanished": Probe(
        "result = os.path.getsize('kept')", before=10000, during="ENOENT", arguments={"path": "kept"}
    ),
    "fork-fails": Probe(FORK, before=0, during="EAGAIN"),
    "half-open": Probe("near.send(b'x'); result = far.recv(1)", before=b"x", during="EAGAIN", prepare=UNBLOCKED),
    "interrupted-calls": Probe(
        INTERRUPTED,
        before=False,
        during=True,
        prepare="libc = ctypes.CDLL(None, use_errno=True); pipe = os.pipe()",
    ),
    "io-error": Probe(WRITE, before=1000, during="EIO"),
    "kill": ends_by(9),
    "loopback-down": Probe(LETTER, before=b"x", during="EAGAIN"),
    "memory-errors": counts("/sys/devices/system/edac/mc/mc0/ce_count", 100),
    "memory-limit": Probe("mmap.mmap(-1, 32 << 20).close()", before=None, during="ENOMEM"),
    "memory-pressure": Probe(
        "bytearray(b'x') * (4 << 20)\nwith open('/proc/self/cgroup') as file: result = '/colos-' in file.read()",
        before=False,
        during=True,
        arguments={"free": 1 << 20},
    ),
    "memory-shrunk": Probe(
        "with open('/proc/meminfo') as file: result = int(file.read().split()[1])",
        before=lambda kib: kib != 256 << 10,
        during=256 << 10,
    ),
    "name-lookup-fails": Probe(LOOK_UP, before=lambda seen: "127.0.0.1" in seen, during=socket.EAI_AGAIN),
    "name-lookup-slow": takes_longer("socket.getaddrinfo('localhost', 1)", 0.2, delay_ms=200),
    "no-entropy": Probe("result = len(os.urandom(8))", before=8, during="EAGAIN"),
    "node-kill": ShownBy("test_process_kinds.py::test_a_node_kill_ends_everybody", "nobody is left"),
    "oom-kill": Probe(
        "os.kill(victim, signal.SIGUSR1)" + ENDED,
        before=0,
        during=9,
        after=9,
        prepare=GROWER,
        target="agent/victim",
        arguments={"free": 1 << 20},
    ),
    "oom-kill-lookalike": ends_by(9),
    "overheating": reads("/sys/class/thermal/thermal_zone*/temp", "123000", celsius=123),
    "packet-delay": Probe(LETTER, before=b"x", during="EAGAIN", arguments={"ms": 500}),
    "packet-loss": Probe(LETTER, before=b"x", during="EAGAIN", arguments={"share": 1}),
    "partition": Probe(ECHOES, before=b"x", during="silence", prepare=ECHO, target="agent/victim"),
    "pause": stops(),
    "pause-for": stops(seconds=60),
    "permission-lost": Probe("open('kept').close()", before=None, during="EACCES", arguments={"path": "kept"}),
    "power-lost": Probe(MINUTES_LEFT, before=lambda seen: 7 not in seen, during={7}, arguments={"minutes": 7}),
    "root-kill": ShownBy("test_process_kinds.py::test_a_root_kill_ends_the_main_process_only", "the agent is the root"),
    "runtime-clock": Probe(
        "result = round((clock.wall_time() - time.time()) / 60)", before=0, during=60, prepare=RUNTIME_CLOCK
    ),
    "scheduling-delays": takes_longer(WRITE, 0.05, seconds=0.1, probability=1.0, calls=["write"]),
    "short-write": Probe(WRITE, before=1000, during=500),
    "signal-storm": Probe(
        "result = bool(hits); hits.clear()",
        before=False,
        during=True,
        prepare="hits = []; signal.signal(signal.SIGCHLD, lambda *_: hits.append(1))",
        arguments={"count": 10_000, "over_s": 10},
    ),
    "slow-disk": takes_longer("os.fsync(fd)", prepare="fd = os.open('kept', os.O_RDONLY)", seconds=LATE_S),
    "slow-link": Probe(MUCH, before=True, during=False, arguments={"bytes_per_s": 32768}),
    "slow-network": takes_longer("near.send(b'x')", LATE_S / 2, seconds=LATE_S),
    "starvation-intervals": Probe(CONTINUES, before=False, during=True, prepare=CONTINUED),
    "syscall-delay": takes_longer(WRITE, seconds=LATE_S),
    "syscall-error": Probe(WRITE, before=1000, during="EIO"),
    "terminate": ends_by(15),
    "thread-fails": Probe(THREAD, before="made", during="can't start new thread"),
    "timezone-changed": Probe(
        LOCAL, before=lambda local: local != MOVED, during=MOVED, prepare="os.environ.pop('TZ', None)"
    ),
    "torn-write": Probe(WRITTEN, before=(1000, 1000), during=("EIO", 500)),
    "zygote-kill": ShownBy(
        "test_process_kinds.py::test_a_node_without_its_zygote_restarts_its_actors", "the agent is no node of actors"
    ),
}

#: How often a kind is injected and healed in a row, where a hundred times would take too long, and why.
FEWER_ROUNDS: dict[str, tuple[int, str]] = {
    **dict.fromkeys(
        ("battery-low", "disk-failing", "fan-stopped", "memory-errors", "memory-shrunk", "overheating", "power-lost"),
        (20, "each round enters the sandbox to mount files over /sys or /proc, and again to unmount them"),
    ),
    "cpu-offline": (10, "each round mounts a dozen files in the sandbox, and unmounts them"),
    "cpu-rival": (10, "each round starts processes and waits for the kernel's next tick"),
    "loopback-down": (20, "taking an interface down and up waits for all CPUs of the kernel"),
    **dict.fromkeys(
        ("connection-refused", "half-open", "packet-loss", "partition", "slow-link"),
        (20, "each round enters the sandbox three times: to set the kernel up, to read its counts, to undo it"),
    ),
    **dict.fromkeys(
        ("name-lookup-fails", "name-lookup-slow", "timezone-changed"),
        (20, "each round enters the sandbox for every file that it mounts over another, and again to unmount it"),
    ),
}
