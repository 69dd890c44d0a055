"""What test_syscalls.py runs: ``python syscalls_scenarios.py NAME`` prints the result as JSON."""

import ctypes
import errno
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import threading

from trapped import serve, start

from colos.chaos.mechanisms import syscalls
from colos.chaos.mechanisms.syscalls import Trap, call
from colos.errors import InvalidSpecification


def outcome(action, *arguments):
    try:
        return action(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]


def trapped(body, traps, decide):
    """The body's result; `decide(listener, notification)` answers each of its trapped calls."""
    child, listener, line = start(body, traps)
    return serve(listener, line, None, child, decide)


def probing():
    """Available here, and nothing is left: no child, no descriptor, no filter."""
    before = sorted(os.listdir("/proc/self/fd"))
    answers = [syscalls.probe(), syscalls.probe()]
    children = outcome(os.waitpid, -1, os.WNOHANG)
    with open("/proc/self/status") as status:
        mode = next(line.split()[1] for line in status if line.startswith("Seccomp:"))
    return {
        "answers": answers,
        "children": children,
        "same_fds": before == sorted(os.listdir("/proc/self/fd")),
        "mode": mode,
    }


def probing_below_a_listener():
    return trapped(lambda control: syscalls.probe(), [Trap("getppid")], lambda l, n: l.proceed(n))  # noqa: E741


def probing_with_threads():
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    try:
        return syscalls.probe()
    except RuntimeError as error:
        return str(error)
    finally:
        go.set()
        thread.join()


def answers():
    """The three ways to answer, and what the supervisor is told."""
    seen = []

    def decide(listener, n):
        seen.append([n.call, list(n.args[:3]), n.pid > 0, listener.is_valid(n)])
        kind = n.args[0]
        if kind == 1:
            done = listener.proceed(n)
        elif kind == 2:
            done = listener.fail(n, errno.EDQUOT)
        else:
            done = listener.answer(n, 1 << 40)
        seen[-1] += [done, listener.is_valid(n), listener.proceed(n)]

    def body(control):
        return [outcome(call, "getppid", kind, 7, 1 << 50) for kind in (1, 2, 3)]

    given = trapped(body, [Trap("getppid")], decide)
    return {"given": given[1:], "seen": seen, "parent": given[0] == os.getpid()}


def conditions():
    """Only calls that meet a trap's condition arrive; several conditions on one call are alternatives."""
    seen = []

    def decide(listener, n):
        seen.append([n.call, n.args[0]])
        listener.proceed(n)

    def body(control):
        for first in (0, 1, 2, 4, 8, 1 << 40):
            call("getppid", first)
        outcome(call, "fdatasync", 999)
        outcome(call, "fsync", 998)

    trapped(body, [Trap("getppid", 0, 1), Trap("getppid", 0, 6), Trap("fsync")], decide)
    return seen


def unknown():
    got = []
    for trap in (Trap("no_such_call"), Trap("openat", 6, 1), Trap("openat", 0, 1 << 32)):
        try:
            syscalls.install([trap])
        except InvalidSpecification as error:
            got.append(str(error))
    return got


def foreign_calls():
    """An x32 number is none of ours, and is not trapped even where its low part is."""
    seen = []

    def decide(listener, n):
        seen.append(n.call)
        listener.proceed(n)

    def body(control):
        libc = ctypes.CDLL(None, use_errno=True)
        result = libc.syscall(ctypes.c_long(syscalls.number_of("getppid") | 0x40000000))
        return [result, errno.errorcode.get(ctypes.get_errno())]

    return [trapped(body, [Trap("getppid")], decide), seen]


def inheritance():
    """A program started by a trapped one is trapped; its child too."""
    seen = []

    def decide(listener, n):
        seen.append(n.call)
        listener.fail(n, errno.EIO)

    def body(control):
        # The shell waits for a child of its own, so this is a grandchild's call.
        command = ["/bin/sh", "-c", "(ln -s a /nowhere/b; :); :"]
        return subprocess.run(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "LC_ALL": "C"}).stderr

    return [trapped(body, [Trap("symlink"), Trap("symlinkat")], decide), seen]


def memory():
    """Reading and writing the caller's memory, up to its very edge."""
    page = 4096
    got = {}

    def decide(listener, n):
        address = n.args[0]
        pid = n.pid
        got["read"] = syscalls.read_memory(pid, address, 5).decode()
        got["nothing"] = len(syscalls.read_memory(pid, address, 0))
        got["edge"] = syscalls.read_path(pid, address + page - 6)
        got["unmapped"] = outcome(syscalls.read_memory, pid, 8, 5)
        got["path_unmapped"] = outcome(syscalls.read_path, pid, 8)
        got["path_too_long"] = outcome(syscalls.read_path, pid, n.args[1])
        got["path_longest"] = len(syscalls.read_path(pid, n.args[1] + 2 * page - 4096))
        syscalls.write_memory(pid, address, b"HELLO")
        listener.proceed(n)

    def body(control):
        area = mmap.mmap(-1, 2 * page)
        area[:5] = b"hello"
        area[page - 6 : page] = b"/edge\0"
        start = ctypes.addressof(ctypes.c_char.from_buffer(area))
        ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + page), ctypes.c_size_t(page), 0)
        long = ctypes.create_string_buffer(b"x" * (2 * page - 1))
        call("getppid", start, ctypes.addressof(long))
        return area[:5].decode()

    return [trapped(body, [Trap("getppid")], decide), got]


def descriptors():
    """A duplicate shares the offset, also when a thread that is not the first one calls."""
    got = []

    def decide(listener, n):
        fd = syscalls.open_of(n.pid, n.args[0])
        got.append([os.write(fd, b"ours "), os.get_inheritable(fd), syscalls.thread_group(n.pid) == n.pid])
        os.close(fd)
        got[-1].append(outcome(syscalls.open_of, n.pid, 999))
        listener.proceed(n)

    def body(control):
        fd = os.memfd_create("shared")
        call("getppid", fd)
        os.write(fd, b"theirs ")
        thread = threading.Thread(target=call, args=("getppid", fd))
        thread.start()
        thread.join()
        return os.pread(fd, 100, 0).decode()

    return [trapped(body, [Trap("getppid")], decide), got, outcome(syscalls.open_of, 2**22 + 1, 0)]


def vanished():
    """A caller killed before it is received, or before it is answered, is told apart and harms nobody."""
    child, listener, _ = start(lambda control: call("getppid"), [Trap("getppid")])
    poll = select.poll()
    poll.register(listener.fileno())
    try:
        poll.poll(5000)
        n = listener.receive()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        got = [listener.is_valid(n), listener.proceed(n), listener.fail(n, 1), listener.answer(n, 1)]
        got.append(outcome(syscalls.read_memory, n.pid, 4096, 1))
        [(_, events)] = poll.poll(5000)
        return [*got, bool(events & 0x10)]  # POLLHUP: nobody uses the filter any more
    finally:
        listener.close()
        listener.close()  # twice does nothing


def never_received():
    child, listener, _ = start(lambda control: call("getppid"), [Trap("getppid")])
    poll = select.poll()
    poll.register(listener.fileno(), 1)
    try:
        poll.poll(5000)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return listener.receive()
    finally:
        listener.close()


def signals():
    """A signal while a call is being answered neither ends it nor makes it happen twice."""
    waits = []

    def decide(listener, n):
        os.kill(n.pid, signal.SIGUSR1)
        with open(f"/proc/{n.pid}/status") as status:  # pending, and it may not break the wait
            pending = next(line for line in status if line.startswith("ShdPnd"))
        waits.append([int(pending.split()[1], 16) != 0, listener.is_valid(n)])
        listener.answer(n, 77)

    def body(control):
        hit = []
        signal.signal(signal.SIGUSR1, lambda *_: hit.append(1))
        return [call("getppid"), len(hit)]

    return [trapped(body, [Trap("getppid")], decide), waits]


def supervisor_gone():
    """When the listener is closed, trapped calls fail with ENOSYS instead of hanging."""
    child, listener, line = start(lambda control: [control.ask("go"), outcome(call, "getppid")], [Trap("getppid")])
    listener.close()
    line.recv(100)
    line.send(b"None")
    got = eval(line.recv(1 << 16))
    os.waitpid(child, 0)
    return got


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
