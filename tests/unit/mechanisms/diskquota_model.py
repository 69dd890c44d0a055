"""Do the same to a size-limited tmpfs and to a directory with a quota, and say what each answered.

``unshare --mount python diskquota_model.py BASE BACKING`` (as root) reads examples as JSON lines
``{"blocks": 4, "inodes": 3, "steps": [["write", "a", 0, 5000], …]}`` and prints one line for each.
"""

import ctypes
import errno
import json
import os
import shutil
import sys

from trapped import run

BLOCK = 4096
_libc = ctypes.CDLL(None, use_errno=True)


def mount(target, options):
    if _libc.mount(b"colos-test", target.encode(), b"tmpfs", 0, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), f"mount tmpfs on {target}")


def unmount(target):
    if _libc.umount2(target.encode(), 0) != 0:
        raise OSError(ctypes.get_errno(), f"umount {target}")


class Disk:
    """One of the two directories, with the descriptors that steps hold open in it."""

    def __init__(self, root):
        self.root = root
        self.slots = {}

    def step(self, kind, *arguments):
        try:
            return getattr(self, kind)(*arguments)
        except OSError as error:
            return errno.errorcode[error.errno]

    def path(self, name):
        return f"{self.root}/{name}"

    def write(self, name, offset, length):
        fd = os.open(self.path(name), os.O_CREAT | os.O_WRONLY)
        try:
            return os.pwrite(fd, b"w" * length, offset)
        finally:
            os.close(fd)

    def append(self, name, length):
        fd = os.open(self.path(name), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        try:
            return os.writev(fd, [b"a" * (length // 2), b"b" * (length - length // 2)])
        finally:
            os.close(fd)

    def truncate(self, name, length):
        return os.truncate(self.path(name), length)

    def unlink(self, name):
        return os.unlink(self.path(name))

    def rename(self, name, other):
        return os.rename(self.path(name), self.path(other))

    def mkdir(self, name):
        return os.mkdir(self.path(name))

    def rmdir(self, name):
        return os.rmdir(self.path(name))

    def symlink(self, name, other):
        return os.symlink(other, self.path(name))

    def hold(self, slot, name):
        self.release(slot)
        self.slots[slot] = os.open(self.path(name), os.O_RDWR)

    def hold_nameless(self, slot):
        self.release(slot)
        self.slots[slot] = os.open(self.root, os.O_TMPFILE | os.O_RDWR)

    def write_held(self, slot, length):
        return os.write(self.slots[slot], b"h" * length) if slot in self.slots else None

    def release(self, slot):
        if slot in self.slots:
            os.close(self.slots.pop(slot))

    def result(self, steps):
        answers = [self.step(*step) for step in steps]
        sizes = {}
        for directory, _, files in os.walk(self.root):
            for file in files:
                path = os.path.join(directory, file)
                sizes[os.path.relpath(path, self.root)] = os.lstat(path).st_size
        for slot in list(self.slots):
            self.release(slot)
        return [answers, dict(sorted(sizes.items()))]


def example(control, data, real, blocks, inodes, steps):
    mount(real, f"size={blocks * BLOCK},nr_inodes={inodes + 1}")
    try:
        wanted = Disk(real).result(steps)
    finally:
        unmount(real)
    os.mkdir(data)
    control.limit(bytes_free=blocks * BLOCK, inodes_free=inodes)
    got = Disk(data).result(steps)
    hits = control.hits()
    control.lift()
    shutil.rmtree(data)
    return {"real": wanted, "quota": got, "hits": hits}


def body(control, data, real):
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(example(control, data, real, **json.loads(line))), flush=True)


if __name__ == "__main__":
    base, backing = sys.argv[1:]
    real, data = f"{base}/real", f"{base}/data"
    os.makedirs(real, exist_ok=True)
    if backing == "tmpfs":
        os.mkdir(f"{base}/roomy")
        mount(f"{base}/roomy", "size=16m")
        data = f"{base}/roomy/data"
    run(data, lambda control: body(control, data, real))
