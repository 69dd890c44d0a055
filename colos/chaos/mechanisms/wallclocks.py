"""Wall clocks that are wrong: how several leases put one wrong, and libfaketime, which has a program read it so.

libfaketime is loaded into a program before its own libraries (LD_PRELOAD) and stands before the C library's
clock calls.  So it must be in the environment when the program starts, and reaches whatever is dynamically
linked and executed; not a process that was only forked, as actors are.  The monotonic clock stays true
(FAKETIME_DONT_FAKE_MONOTONIC): it is what deadlines go by, and no machine's ever jumps.  (A time namespace,
time_namespaces(7), shifts the monotonic and boot clocks and never the wall clock: of no use here.)

Sources: libfaketime's README, ld.so(8), clock_gettime(2).
"""

from __future__ import annotations

import functools
import glob
import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from colos.runtime.clock import Skew

__all__ = [
    "BARE_CURE",
    "CURE",
    "FILE",
    "LEFT_BEHIND",
    "Face",
    "Fake",
    "Reading",
    "Setting",
    "environment",
    "is_loaded",
    "library",
    "probe",
    "skew_of",
    "users_of",
]

#: Where the wrong time stands, as the system sees it.
FILE = "{run}/.faketime"
LEFT_BEHIND = ("faketime_shm_", "sem.faketime_sem_")
"""How the files begin that a program with libfaketime leaves in /dev/shm when a signal ends it; its pid follows."""
_SET = "FAKETIME_TIMESTAMP_FILE"
CURE = (
    "pip install libfaketime, or apt install libfaketime (0.9.11 or newer), or COLOS_LIBFAKETIME=/path/libfaketime.so.1"
)
BARE_CURE = (
    "let ordinary users make user namespaces (Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0; "
    "Docker: --security-opt seccomp=unconfined)"
)
_PLACES = (
    "/usr/lib/*/faketime/libfaketime.so.1",
    "/usr/lib*/faketime/libfaketime.so.1",
    "/usr/local/lib/faketime/libfaketime.so.1",
)
_STEP_S = 0.01
_JOIN_S = 2.0
_PROBE_S = 10.0
# A sleep by the monotonic clock, too: libfaketime 0.9.10 answers EINVAL to the absolute one that Python uses.
_READ = "import time; time.sleep(1e-6); print(time.time(), time.clock_gettime(time.CLOCK_MONOTONIC))"


# --- a clock, and who puts it wrong ------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What one lease does to a clock: a jump, and a rate (0 stops it)."""

    offset_s: float = 0.0
    rate: float = 1.0


class Face:
    """One wall clock.  Jumps add up, rates multiply, and a jump is undone by the same jump back.

    What has drifted meanwhile stays until the last lease ends and the clock is set right.
    """

    def __init__(self) -> None:
        self.settings: dict[object, Setting] = {}
        self.skew: Skew | None = None

    def put(self, lease: object, setting: Setting, now: float) -> Skew:
        """Add a lease's setting; the clock from now on."""
        self.settings[lease] = setting
        return self._turn(setting.offset_s, now)

    def take(self, lease: object, now: float) -> Skew | None:
        """Take a lease's setting away; the clock from now on, None when it is right."""
        setting = self.settings.pop(lease, None)
        if not self.settings:
            self.skew = None
        elif setting is not None:
            self._turn(-setting.offset_s, now)
        return self.skew

    def _turn(self, by: float, now: float) -> Skew:
        rate = 1.0
        for setting in self.settings.values():
            rate *= setting.rate
        shown = now if self.skew is None else self.skew.at(now)
        self.skew = Skew(now, shown + by, rate)
        return self.skew


# --- libfaketime -----------------------------------------------------------------------------


def library() -> str | None:
    """Where libfaketime is: $COLOS_LIBFAKETIME, the Python package of that name, or the distribution's."""
    named = os.environ.get("COLOS_LIBFAKETIME")
    if named:
        return named
    package = importlib.util.find_spec("libfaketime")
    places = list(_PLACES)
    if package is not None and package.origin:
        places.insert(0, f"{os.path.dirname(package.origin)}/vendor/libfaketime/src/libfaketime.so.1")
    return next((found for place in places for found in sorted(glob.glob(place))), None)


def environment() -> dict[str, str]:
    """What a program must find in its environment at its start, so that its clock can be put wrong later."""
    path = library()
    if path is None:
        return {}
    before = os.environ.get("LD_PRELOAD")
    return {
        "LD_PRELOAD": f"{path}:{before}" if before else path,
        _SET: FILE,
        "FAKETIME_NO_CACHE": "1",  # else a change is seen ten seconds later
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_FMT": "%s",
        "NO_FAKE_STAT": "1",  # a file's times are the kernel's
    }


def is_loaded(environment: Mapping[str, str]) -> bool:
    """Whether a program that began with this environment has it, by `environment`."""
    return _SET in environment


@functools.cache
def _probe(path: str) -> str | None:
    fake = {**environment(), "FAKETIME": "+7000"}
    fake.pop(_SET)
    try:
        skew = skew_of(_read_clocks(fake), time.time() - time.monotonic())
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        return f"a program that sleeps does not run under {path}: {(said.strip() or 'no word')[-200:].splitlines()[-1]}"
    return None if abs(skew - 7000) < 60 else f"{path} did not shift a program's clock by 7000 s but by {skew:.0f} s"


def probe() -> str | None:
    """None where libfaketime is installed and does what it should; else the reason why not."""
    path = library()
    if path is None:
        return "libfaketime is not installed"
    return _probe(path)


def _read_clocks(extra: Mapping[str, str]) -> tuple[float, float]:
    command = [sys.executable, "-I", "-S", "-c", _READ]
    environment = {**os.environ, **extra}
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as reader:
        try:
            said, troubles = reader.communicate(timeout=_PROBE_S)
        except BaseException:
            reader.kill()
            raise
        finally:
            reader.wait()
            for begins in LEFT_BEHIND:
                try:
                    os.unlink(f"/dev/shm/{begins}{reader.pid}")
                except OSError:
                    continue
    if reader.returncode != 0:
        raise subprocess.CalledProcessError(reader.returncode, command, said, troubles)
    wall, monotonic = map(float, said.split())
    return wall, monotonic


def skew_of(reading: tuple[float, float], epoch: float) -> float:
    """By how much a wall clock is ahead, read together with the monotonic one, that is 0 at `epoch`."""
    wall, monotonic = reading
    return wall - monotonic - epoch


@dataclass(frozen=True)
class Reading:
    """Run a program inside that reads both clocks, with this environment; gives both."""

    environment: tuple[tuple[str, str], ...]

    def __call__(self) -> tuple[Any, tuple[int, ...]]:
        """Read them, inside."""
        try:
            return _read_clocks(dict(self.environment)), ()
        except (ValueError, subprocess.SubprocessError) as error:
            raise OSError(0, f"a program cannot read its clock: {error}") from error


def users_of(pids: Mapping[int, str]) -> list[str]:
    """Which of these processes, by pid and name, have libfaketime loaded.  proc_pid_maps(5)."""
    found = []
    for pid, name in pids.items():
        try:
            with open(f"/proc/{pid}/maps", "rb") as file:
                if b"/libfaketime" in file.read():
                    found.append(name)
        except OSError:
            continue  # it has ended
    return found


class Fake:
    """The file that libfaketime reads, kept at what a clock shows.

    A jump or a stop is written once.  A rate of libfaketime's own begins at each process's start, so that
    each would drift from elsewhere; here a thread moves the clock on, in steps of 10 ms and never back.
    """

    def __init__(self, path: str) -> None:
        self.face = Face()
        self._path = path
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def set(self, skew: Skew | None) -> None:
        """Show this from now on; None shows the true time.  Raises `OSError`."""
        self._stop()
        if skew is None:
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass  # healed twice, or the system has removed it
            except OSError:
                if os.path.lexists(self._path):
                    raise
            return
        try:
            self._write(skew)
        except OSError:
            if os.path.isdir(os.path.dirname(self._path)):
                raise
            return  # the sandbox has ended, and its clock with it
        if skew.rate not in (0, 1):
            self._over.clear()
            self._thread = threading.Thread(target=self._move, args=(skew,), name="colos-clock-drift", daemon=True)
            self._thread.start()

    def is_true(self) -> bool:
        """Whether there is no file and nobody who writes one."""
        return self._thread is None and not os.path.lexists(self._path)

    def _stop(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._over.set()
            thread.join(_JOIN_S)

    def _move(self, skew: Skew) -> None:
        while not self._over.wait(_STEP_S):
            try:
                self._write(skew)
            except OSError:
                return  # the sandbox has ended, or its run directory is full

    def _write(self, skew: Skew) -> None:
        now = time.time()
        # Behind the true time a step in the offset would be a step back: stand still between the steps instead.
        text = f"{skew.at(now) - now:+.6f}" if skew.rate >= 1 else f"{skew.at(now):.6f}"
        draft = f"{self._path}.new"
        with open(draft, "w", encoding="ascii") as file:
            file.write(text)
        os.rename(draft, self._path)
