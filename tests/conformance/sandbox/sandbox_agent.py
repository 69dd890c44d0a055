"""Runs inside a sandbox: does what it is told over a Unix socket, one Python program a line.

Run as ``python -I -S sandbox_agent.py SOCKET``.  It needs no descriptor and no file to answer.
"""

import ctypes
import errno  # noqa: F401 - for what it is told
import fcntl  # noqa: F401
import mmap  # noqa: F401
import os
import resource  # noqa: F401
import signal
import socket
import sys
import time  # noqa: F401
import traceback


def fork(name, body):
    """A child that is called `name` in /proc and runs `body`; answers its pid when it has begun."""
    begun, begin = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(begun)
            ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)  # PR_SET_NAME
            os.write(begin, b"b")
            os.close(begin)
            body()
        finally:
            os._exit(0)
    os.close(begin)
    assert os.read(begun, 1) == b"b", "the child has died"
    os.close(begun)
    return child


def put(path, data=b"x", flags=os.O_CREAT | os.O_WRONLY | os.O_TRUNC):
    """Write once, unbuffered; how much of it went."""
    fd = os.open(path, flags, 0o600)
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)


def idle():
    signal.pause()


def spin():
    while True:
        pass


def daemon(name):
    """A grandchild in a session of its own, whose parent is gone."""

    def between():
        os.setsid()
        fork(name, idle)

    os.waitpid(fork("between", between), 0)


def reset():
    """As at the beginning: no child, no file, no descriptor, no handler, no name of a test's."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in range(1, 32):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, HANDLERS[number])
    try:
        while True:
            os.waitpid(-1, 0)  # whoever tells us to has killed them
    except ChildProcessError:
        pass
    for name in set(globals()) - NAMES:
        del globals()[name]
    for fd in {int(name) for name in os.listdir("/proc/self/fd")} - DESCRIPTORS:
        try:
            os.close(fd)
        except OSError:
            pass  # the listing's own
    for top in (".", os.environ["COLOS_RUN"], os.environ["HOME"], os.environ["TMPDIR"]):
        clear(top)


def clear(top):
    with os.scandir(top) as entries:
        for entry in entries:
            if entry.path in KEPT or os.path.ismount(entry.path):
                continue
            if entry.is_dir(follow_symlinks=False):
                clear(entry.path)
                if not os.listdir(entry.path):
                    os.rmdir(entry.path)
            else:
                os.unlink(entry.path)


def cpu_of(pid):
    """How much CPU time a process has had, in seconds."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def answer(source):
    scope = globals()
    scope.pop("result", None)
    try:
        exec(source, scope)
    except OSError as error:
        return ("OSError", error.errno)
    except BaseException:
        return ("raised", traceback.format_exc())
    return ("done", scope.get("result"))


def main(path):
    server = socket.socket(socket.AF_UNIX)
    if os.path.exists(path):
        os.unlink(path)  # of an earlier start
    server.bind(path)
    server.listen(16)
    while True:
        connection, _ = server.accept()
        DESCRIPTORS.add(connection.fileno())
        with connection, connection.makefile("rwb") as stream:
            for line in stream:
                stream.write(repr(answer(eval(line))).encode() + b"\n")
                stream.flush()


if __name__ == "__main__":
    KEPT = {
        sys.argv[1],
        os.environ["COLOS_RUN"],
        os.path.join(os.environ["COLOS_RUN"], "output.log"),
        os.getcwd(),
        os.environ["HOME"],
    }
    HANDLERS = {number: signal.getsignal(number) for number in range(1, 32)}
    DESCRIPTORS = {0, 1, 2, 3}
    NAMES = {*globals(), "NAMES"}
    main(sys.argv[1])
