"""What test_diskquota.py runs: ``python diskquota_scenarios.py NAME DATA ELSEWHERE`` prints the result as JSON.

Each scenario runs in the trapped child, with DATA as its quota's root.
"""

import ctypes
import errno
import json
import mmap
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading

from trapped import run

from colos.chaos.mechanisms.rawcalls import call

BLOCK = 4096


def outcome(action, *arguments, **named):
    """What the action returned, or the name of its errno."""
    try:
        return action(*arguments, **named)
    except OSError as error:
        return errno.errorcode[error.errno]


def fill(path, blocks):
    with open(path, "wb") as file:
        file.write(b"f" * (blocks * BLOCK))


def touch(path):
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))


def contents(path):
    with open(path, "rb") as file:
        return file.read()


def size(path):
    return os.stat(path).st_size


def full(control, data, elsewhere):
    control.limit(bytes_free=2 * BLOCK)
    fd = os.open(f"{data}/a", os.O_CREAT | os.O_RDWR)
    got = [outcome(os.write, fd, b"x" * BLOCK) for _ in range(3)]
    text = None
    try:
        with open(f"{data}/b", "w") as file:
            file.write("hello")
    except OSError as error:
        text = str(error)
    return {"got": got, "text": text, "size": size(f"{data}/a"), "hits": control.hits()}


def short_write(control, data, elsewhere):
    control.limit(bytes_free=2 * BLOCK + 1000)
    fd = os.open(f"{data}/a", os.O_CREAT | os.O_RDWR)
    payload = bytes(i % 251 for i in range(3 * BLOCK))
    first = os.write(fd, b"h" * 100)
    got = [outcome(os.write, fd, payload), os.lseek(fd, 0, os.SEEK_CUR), outcome(os.write, fd, payload)]
    return {
        "first": first,
        "got": got,
        "right": os.pread(fd, 9 * BLOCK, 0) == b"h" * 100 + payload[: 2 * BLOCK - 100],
        "hits": control.hits(),
    }


def every_writer(control, data, elsewhere):
    """A fresh file for each call; one block free, 6,000 bytes offered: 4,096 are taken."""
    got = {}
    piece = b"w" * 1500
    writers = {
        "write": lambda fd: os.write(fd, piece * 4),
        "pwrite64": lambda fd: os.pwrite(fd, piece * 4, 0),
        "writev": lambda fd: os.writev(fd, [piece] * 4),
        "pwritev": lambda fd: pwritev(fd, [piece] * 4, 0),
        "pwritev2": lambda fd: pwritev(fd, [piece] * 4, 0, 0x2),  # RWF_DSYNC
        "pwritev2 here": lambda fd: pwritev(fd, [piece] * 4, -1, 0x2),
    }
    for name, writer in writers.items():
        control.lift()
        path = f"{data}/{name}"
        fd = os.open(path, os.O_CREAT | os.O_RDWR)
        control.limit(bytes_free=BLOCK)
        got[name] = [outcome(writer, fd), size(path), outcome(os.pwrite, fd, b"more", BLOCK)]
        os.unlink(path)
        os.close(fd)
    return got


def pwritev(fd, pieces, offset, flags=None):
    buffers = [ctypes.create_string_buffer(piece, len(piece)) for piece in pieces]
    vector = (ctypes.c_uint64 * (2 * len(pieces)))()
    for i, buffer in enumerate(buffers):
        vector[2 * i], vector[2 * i + 1] = ctypes.addressof(buffer), len(buffer)
    if flags is None:
        return call("pwritev", fd, ctypes.addressof(vector), len(pieces), offset, 0)
    return call("pwritev2", fd, ctypes.addressof(vector), len(pieces), offset, 0, flags)


def transfers(control, data, elsewhere):
    """sendfile, copy_file_range and splice end short too, and leave every offset where a short call does."""
    source = f"{elsewhere}/source"
    content = bytes(i % 253 for i in range(3 * BLOCK))
    with open(source, "wb") as file:
        file.write(content)
    got = {}
    for name in ("sendfile", "sendfile at", "copy_file_range", "copy_file_range at", "splice"):
        control.lift()
        path = f"{data}/{name}"
        fin, fout = os.open(source, os.O_RDONLY), os.open(path, os.O_CREAT | os.O_RDWR)
        control.limit(bytes_free=BLOCK)
        offset = ctypes.c_int64(100)
        at = ctypes.addressof(offset) if name.endswith(" at") else 0
        if name.startswith("sendfile"):
            transfer = lambda: call("sendfile", fout, fin, at, 2 * BLOCK)  # noqa: B023, E731
        elif name == "splice":
            readable, writable = os.pipe()
            os.write(writable, content[: 2 * BLOCK])
            transfer = lambda: call("splice", readable, 0, fout, 0, 2 * BLOCK, 0)  # noqa: B023, E731
        else:
            transfer = lambda: call("copy_file_range", fin, at, fout, 0, 2 * BLOCK, 0)  # noqa: B023, E731
        skip = 100 if at else 0
        results = [outcome(transfer), outcome(transfer)]
        right = contents(path) == content[skip : skip + BLOCK]
        got[name] = [*results, right, os.lseek(fin, 0, os.SEEK_CUR), offset.value - 100]
        os.unlink(path)
        for fd in (fin, fout):
            os.close(fd)
    control.limit(bytes_free=BLOCK)
    got["copyfile"] = outcome(shutil.copyfile, source, f"{data}/copy")
    return got


def in_place(control, data, elsewhere):
    fill(f"{data}/a", 2)
    with open(f"{data}/tail", "wb") as file:
        file.write(b"t" * 100)
    control.limit(bytes_free=0)
    fd = os.open(f"{data}/a", os.O_RDWR)
    tail = os.open(f"{data}/tail", os.O_WRONLY | os.O_APPEND)
    return {
        "overwrite": outcome(os.pwrite, fd, b"y" * (2 * BLOCK), 0),
        "tail": [outcome(os.write, tail, b"z" * BLOCK), outcome(os.write, tail, b"z")],
        "tail_right": contents(f"{data}/tail") == b"t" * 100 + b"z" * (BLOCK - 100),
        "nothing": outcome(os.write, fd, b""),
        "read_only": outcome(os.write, os.open(f"{data}/a", os.O_RDONLY), b"x" * BLOCK),
        "bad_addresses": [outcome(call, "pwrite64", fd, 8, BLOCK, 0), outcome(call, "writev", fd, 8, 1)],
        "hits": control.hits(),
    }


def freed(control, data, elsewhere):
    fill(f"{data}/a", 3)
    fill(f"{data}/b", 1)
    control.limit(bytes_free=0)
    new = os.open(f"{data}/new", os.O_CREAT | os.O_RDWR)
    before = outcome(os.write, new, b"x")
    os.truncate(f"{data}/a", BLOCK + 1)  # two of three stay
    after_truncate = [outcome(os.write, new, b"x" * BLOCK), outcome(os.write, new, b"x")]
    os.unlink(f"{data}/b")
    after_unlink = [outcome(os.write, new, b"x" * BLOCK), outcome(os.write, new, b"x")]
    return {"before": before, "after_truncate": after_truncate, "after_unlink": after_unlink}


def deleted_but_open(control, data, elsewhere):
    fill(f"{data}/a", 2)
    held = os.open(f"{data}/a", os.O_RDWR)
    new = os.open(f"{data}/new", os.O_CREAT | os.O_RDWR)
    control.limit(bytes_free=BLOCK)
    os.unlink(f"{data}/a")
    held_still = [outcome(os.write, new, b"x" * (2 * BLOCK)), outcome(os.write, held, b"y" * BLOCK)]
    growing = outcome(os.pwrite, held, b"y", 2 * BLOCK)
    inherited = os.dup(held)
    os.close(held)
    duplicated = outcome(os.write, new, b"x")
    os.close(inherited)
    closed = [outcome(os.write, new, b"x" * (2 * BLOCK)), outcome(os.write, new, b"x")]
    control.limit(bytes_free=BLOCK, inodes_free=1)
    with tempfile.TemporaryFile(dir=data, buffering=0) as nameless:
        nameless.write(b"n")
        no_inode = outcome(os.mkdir, f"{data}/d")
        no_block = outcome(os.write, new, b"x")
    return {
        "held": held_still,
        "growing": growing,
        "duplicated": duplicated,
        "closed": closed,
        "nameless": [no_inode, no_block],
        "nameless_closed": [outcome(os.mkdir, f"{data}/d"), outcome(os.write, new, b"x")],
    }


def hard_links_and_holes(control, data, elsewhere):
    fill(f"{data}/a", 2)
    os.link(f"{data}/a", f"{data}/b")
    os.link(f"{data}/a", f"{elsewhere}/c")
    control.limit(bytes_free=2 * BLOCK)
    os.unlink(f"{data}/b")  # frees nothing
    by_other_name = os.open(f"{elsewhere}/c", os.O_RDWR)
    sparse = os.open(f"{data}/sparse", os.O_CREAT | os.O_RDWR)
    os.ftruncate(sparse, 10 * BLOCK)
    return {
        "hole": [outcome(os.pwrite, sparse, b"x", 5 * BLOCK), outcome(os.pwrite, sparse, b"y" * 100, 5 * BLOCK)],
        "other_name": outcome(os.pwrite, by_other_name, b"z" * (3 * BLOCK), BLOCK),
        "no_more": outcome(os.pwrite, sparse, b"x", 7 * BLOCK),
        "across": outcome(os.pwrite, sparse, b"x" * (2 * BLOCK), 5 * BLOCK),
    }


def allocate(control, data, elsewhere):
    fd = os.open(f"{data}/a", os.O_CREAT | os.O_RDWR)
    control.limit(bytes_free=3 * BLOCK)
    return [
        outcome(os.posix_fallocate, fd, 0, 4 * BLOCK),
        size(f"{data}/a"),
        outcome(os.posix_fallocate, fd, 0, 3 * BLOCK),
        outcome(os.pwrite, fd, b"x" * BLOCK, 2 * BLOCK),
        outcome(os.pwrite, fd, b"x", 3 * BLOCK),
        outcome(call, "fallocate", fd, 0x3, 0, BLOCK),  # a punched hole gives a block back
        outcome(os.pwrite, fd, b"x", 3 * BLOCK),
        outcome(os.pwrite, fd, b"x", 0),
        outcome(call, "fallocate", fd, 0x3, 0, BLOCK),  # where there is nothing to give back
    ]


def inodes(control, data, elsewhere):
    os.mkdir(f"{data}/dir")
    fill(f"{data}/there", 1)
    os.symlink("missing", f"{data}/dangling")
    control.limit(inodes_free=1)
    creators = {
        "open": lambda: os.open(f"{data}/n", os.O_CREAT | os.O_WRONLY),
        "openat": lambda: os.open("n", os.O_CREAT | os.O_WRONLY, dir_fd=os.open(data, os.O_RDONLY)),
        "openat2": lambda: openat2(f"{data}/n", os.O_CREAT | os.O_WRONLY),
        "mkdir": lambda: os.mkdir(f"{data}/n/"),
        "mkdirat": lambda: os.mkdir("n", dir_fd=os.open(f"{data}/dir", os.O_RDONLY)),
        "mknod": lambda: os.mknod(f"{data}/n"),
        "mkfifo": lambda: os.mkfifo(f"{data}/dir/n"),
        "symlink": lambda: os.symlink("to", f"{data}/n"),
        "symlinkat": lambda: os.symlink("to", "n", dir_fd=os.open(data, os.O_RDONLY)),
        "tmpfile": lambda: os.open(data, os.O_TMPFILE | os.O_WRONLY),
        "dangling": lambda: os.open(f"{data}/dangling", os.O_CREAT | os.O_WRONLY),
        "creat": lambda: raw_path("creat", f"{data}/n", 0o600),
        "old open": lambda: raw_path("open", f"{data}/n", os.O_CREAT | os.O_WRONLY, 0o600),
    }
    last_one = outcome(os.mkdir, f"{data}/last")
    got = {name: outcome(creator) for name, creator in creators.items()}
    os.chdir(data)
    got["relative"] = outcome(os.mkdir, "n")
    hits = control.hits()
    allowed = {
        "there": outcome(touch, "there"),
        "exclusive": outcome(os.open, "there", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
        "exclusive_dangling": outcome(os.open, "dangling", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
        "exists": outcome(os.mkdir, "dir"),
        "bad_address": outcome(call, "openat", -100, 8, os.O_CREAT | os.O_WRONLY, 0o600),
        "no_parent": outcome(os.mkdir, "nowhere/n"),
        "replace": outcome(os.replace, "there", "dir/there"),
        "link": outcome(os.link, "dir/there", "again"),
        "elsewhere": outcome(os.mkdir, f"{elsewhere}/n"),
        "write": outcome(lambda: fill("again", 3)),
    }
    os.rmdir("last")
    return {
        "last_one": last_one,
        "got": got,
        "hits": hits,
        "allowed": allowed,
        "after_rmdir": [outcome(os.mkdir, "n"), outcome(os.mkdir, "m")],
    }


def raw_path(name, path, *arguments):
    buffer = ctypes.create_string_buffer(os.fsencode(path))
    return call(name, ctypes.addressof(buffer), *arguments)


def openat2(path, flags):
    name = ctypes.create_string_buffer(os.fsencode(path))
    how = (ctypes.c_uint64 * 3)(flags, 0o600, 0)
    return call("openat2", -100, ctypes.addressof(name), ctypes.addressof(how), 24)


def lifted(control, data, elsewhere):
    control.limit(bytes_free=0, inodes_free=0)
    refused = [outcome(os.mkdir, f"{data}/d")]
    control.lift()
    os.mkdir(f"{data}/d")
    fill(f"{data}/a", 5)
    hits_kept = control.hits()
    control.limit(bytes_free=BLOCK)
    return {
        "refused": refused,
        "size": size(f"{data}/a"),
        "hits_kept": hits_kept,
        "hits_reset": control.hits(),
        "relative": [outcome(fill, f"{data}/b", 1), outcome(fill, f"{data}/c", 1)],
    }


def others_untouched(control, data, elsewhere):
    control.limit(bytes_free=0, inodes_free=0)
    fill(f"{elsewhere}/a", 3)
    fill(f"{data}-beside", 1)  # whose name merely starts alike
    readable, writable = os.pipe()
    left, right = socket.socketpair()
    _master, tty = os.openpty()
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as shared:
        shared.write(b"s" * BLOCK)
        shared.flush()
    return {
        "pipe": [os.write(writable, b"p" * 5000), len(os.read(readable, 5000))],
        "socket": [os.write(left.fileno(), b"s"), right.recv(9).decode()],
        "tty": os.write(tty, b"t"),
        "memory_file": os.write(os.memfd_create("m"), b"m" * BLOCK),
        "closed": outcome(os.write, 999, b"x"),
        "sendfile_socket": os.sendfile(left.fileno(), os.open(f"{elsewhere}/a", os.O_RDONLY), 0, 100),
        "hits": control.hits(),
    }


def programs(control, data, elsewhere):
    fill(f"{elsewhere}/source", 4)
    control.limit(bytes_free=2 * BLOCK)
    got = {}
    environment = {**os.environ, "LC_ALL": "C"}
    commands = {
        "dd": f"dd if=/dev/zero of={data}/dd bs=1000 count=20",
        "echo": f"echo hi > {data}/echo",
        "cp": f"cp {elsewhere}/source {data}/cp",
        "cat": f"cat {elsewhere}/source > {data}/cat",
        "background": f"(exec cat {elsewhere}/source > {data}/background) & wait $!",
    }
    for name, command in commands.items():
        done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, env=environment)
        got[name] = [done.returncode != 0, "No space left on device" in done.stdout + done.stderr]
    control.limit(inodes_free=0)
    done = subprocess.run(["/bin/sh", "-c", f"echo hi > {data}/none"], capture_output=True, text=True)
    got["no_inode"] = [done.returncode != 0, os.path.exists(f"{data}/none")]
    got["dd_size"] = size(f"{data}/dd")
    return got


def document(control, data, elsewhere):
    """As TinyDB saves: seek, one buffered write of everything, flush, fsync, truncate."""
    path = f"{data}/db.json"

    def save(file, text):
        file.seek(0)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
        file.truncate()

    file = open(path, "w+")  # noqa: SIM115 - closing it is part of the story
    save(file, "a" * 3000)
    control.limit(bytes_free=BLOCK)
    got = [outcome(save, file, "b" * 8000), outcome(save, file, "c" * 9000), size(path)]
    try:
        file.close()
    except OSError as error:
        got.append(errno.errorcode[error.errno])
    return got


def threads(control, data, elsewhere):
    """Many callers at once get exactly what there is: no block more, none less."""
    control.limit(bytes_free=16 * BLOCK, inodes_free=10)
    made, written = [], []

    def create(number):
        made.extend(outcome(touch, f"{data}/{number}-{i}") for i in range(4))

    def write(number):
        fd = os.open(f"{data}/shared-{number % 2}", os.O_WRONLY | os.O_APPEND)
        written.extend(outcome(os.write, fd, b"x" * BLOCK) for _ in range(8))

    for i in range(2):
        touch(f"{data}/shared-{i}")
    for work in (create, write):
        crowd = [threading.Thread(target=work, args=(i,)) for i in range(5)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
    sizes = sum(size(f"{data}/{name}") for name in os.listdir(data))
    return {
        "made": [made.count(None), made.count("ENOSPC"), len(os.listdir(data))],
        "written": [sum(n for n in written if n != "ENOSPC"), sizes],
    }


def processes(control, data, elsewhere):
    """Nor do processes that start together."""
    control.limit(bytes_free=16 * BLOCK)
    fds = [os.open(f"{data}/{i}", os.O_CREAT | os.O_WRONLY) for i in range(4)]
    children = []
    for fd in fds:
        child = os.fork()
        if child == 0:
            while outcome(os.write, fd, b"x" * BLOCK) == BLOCK:
                pass
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    return sum(size(f"{data}/{i}") for i in range(4)) // BLOCK


def creating_together(control, data, elsewhere):
    """Six wait at once for two inodes; see `Gathered`."""
    control.limit(inodes_free=2)
    children = []
    for i in range(6):
        child = os.fork()
        if child == 0:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            outcome(touch, f"{data}/{i}")
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    return len(os.listdir(data))


class Gathered:
    """A supervisor that answers idle-class callers six at a time: all are let go before one of them can run."""

    def __init__(self, quota):
        self.quota = quota
        self.waiting = []
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    def __call__(self, listener, n):
        if os.sched_getscheduler(n.pid) != os.SCHED_IDLE:
            self.quota.handle(listener, n)
            return
        os.sched_setaffinity(n.pid, os.sched_getaffinity(0))
        self.waiting.append(n)
        if len(self.waiting) == 6:
            for each in self.waiting:
                self.quota.handle(listener, each)


def large(control, data, elsewhere):
    """What the supervisor copies piece by piece arrives whole, and a vector's pieces in order."""
    content = bytes(i * 7 % 256 for i in range(1 << 16)) * 144  # 9 MiB, in three pieces
    control.limit(bytes_free=8 << 20)
    fd = os.open(f"{data}/a", os.O_CREAT | os.O_RDWR)
    got = [outcome(os.writev, fd, [content[:5000], b"", content[5000:]]), contents(f"{data}/a") == content[: 8 << 20]]
    os.ftruncate(fd, 0)
    return [*got, outcome(os.pwrite, fd, content[: 8 << 20], 0), contents(f"{data}/a") == content[: 8 << 20]]


def shrinking_neighbour(control, data, elsewhere):
    """Space that an idle process gave back is there at once, not when it calls again."""
    fd = os.open(f"{data}/neighbour", os.O_CREAT | os.O_RDWR)
    control.limit(bytes_free=4 * BLOCK)
    go, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(fd, b"x" * (4 * BLOCK))
        os.ftruncate(fd, 0)
        os.close(done[1])
        os.read(go[0], 1)
        os._exit(0)
    os.close(done[1])
    os.read(done[0], 1)  # end of file: the child has truncated, and makes no trapped call after
    got = outcome(fill, f"{data}/mine", 4)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return got


def file_size_limit(control, data, elsewhere):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK + 50, resource.RLIM_INFINITY))
    control.limit(bytes_free=2 * BLOCK)
    fd = os.open(f"{data}/a", os.O_CREAT | os.O_WRONLY)
    return [outcome(os.write, fd, b"x" * (4 * BLOCK)), outcome(os.write, fd, b"x" * BLOCK)]


def direct(control, data, elsewhere):
    try:
        fd = os.open(f"{data}/a", os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
    except OSError:
        return None
    control.limit(bytes_free=BLOCK)
    with mmap.mmap(-1, 2 * BLOCK) as aligned:
        return [outcome(os.write, fd, aligned), outcome(os.write, fd, aligned)]


def killed_while_waiting(control, data, elsewhere):
    """A caller that is killed before its answer harms nobody."""
    control.limit(bytes_free=BLOCK)
    victims = []
    for i in range(20):
        child = os.fork()
        if child == 0:
            fd = os.open(f"{data}/a", os.O_CREAT | os.O_WRONLY)
            while True:
                outcome(os.pwrite, fd, b"x" * (2 * BLOCK), BLOCK * (i % 3))
        victims.append(child)
    for child in victims:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return outcome(os.mkdir, f"{data}/d")


def not_to_be_looked_into(control, data, elsewhere):
    """A caller that the supervisor may not look into is let go, and that is put on record."""
    control.limit(bytes_free=0)
    fd = os.open(f"{data}/a", os.O_CREAT | os.O_WRONLY)
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    return [outcome(os.write, fd, b"x"), control.hits(), control.ask("errors")]


if __name__ == "__main__":
    scenario, data, elsewhere = sys.argv[1:]
    os.umask(0)
    decide = Gathered if scenario == "creating_together" else None
    print(json.dumps(run(data, lambda control: globals()[scenario](control, data, elsewhere), decide)))
