"""The folder of scenario files: one file for each failure, written whole or not at all."""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from colos.chaos.fingerprint import fingerprint
from colos.chaos.mechanisms.atomicfile import written
from colos.chaos.mechanisms.filelock import locked
from colos.chaos.scenario_edit import update_text
from colos.chaos.scenario_read import load
from colos.chaos.scenario_write import dumps
from colos.chaos.steps import Scenario
from colos.errors import ColosError, InvalidScenario

__all__ = ["rewrite", "save"]

#: How long to wait for others who save; each takes milliseconds.
_LOCK_S = 30.0


def save(
    scenario: Scenario, directory: str | os.PathLike[str], today: Callable[[Scenario], Scenario] = lambda saved: saved
) -> Path:
    """Keeps the scenario in `directory`, which is made if need be; returns the path of its file.

    One failure (test and fingerprint) is one file, wherever below `directory` and whatever its name;
    `today` gives a scenario that was found there in today's names, and raises `ColosError` where it cannot.
    One that is there already is rewritten only for a better scenario: fewer steps, or as many that
    fail more often; comments and `known` stay.  Any other file is never touched, and a reader never
    sees half a one.  Raises `InvalidScenario` as `dumps` does, and `OSError`.
    """
    content = dumps(scenario).encode()
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    stem = _stem(scenario)
    # Two workers of pytest-xdist may find the same failure at the same time.  Without the lock what follows is as
    # correct, if less thorough: no file is lost, and at worst one failure becomes two.
    with locked(folder, _LOCK_S):
        for path, found in _present(folder, f"{stem}.toml", today):
            if _same_failure(found, scenario):
                if _is_better(scenario, found):
                    _replace(path, replace(scenario, known=found.known if scenario.known is None else scenario.known))
                return path
        for suffix in itertools.chain([""], map("-{}".format, itertools.count(2))):
            path = folder / f"{stem}{suffix}.toml"
            if _create(path, content) or _is_kept_in(path, scenario):
                return path
    raise AssertionError("unreachable: the suffixes never end")


def rewrite(path: str | os.PathLike[str], scenario: Scenario) -> None:
    """Makes a file say this scenario, keeping its comments (see `update_text`).

    Nothing is written when it says so already.  Raises `InvalidScenario` as `dumps` does or if the
    present content is no scenario, and `OSError`.
    """
    _replace(Path(path), scenario)


def _stem(scenario: Scenario) -> str:
    name = re.sub("[^A-Za-z0-9_.-]+", "_", scenario.violates.rpartition(":")[2])[:60].lstrip(".")
    return f"{name or 'violation'}-{fingerprint(scenario.violates, scenario.steps)[:6]}"


def _present(folder: Path, first: str, today: Callable[[Scenario], Scenario]) -> Iterator[tuple[Path, Scenario]]:
    """The scenarios in a folder, those that can be read; `first` the file that is most likely the one."""
    for path in sorted(folder.glob("**/*.toml"), key=lambda path: (path != folder / first, path)):
        try:
            yield path, today(load(path))
        except (ColosError, OSError):
            continue  # told at collection, where its author looks


def _is_kept_in(path: Path, scenario: Scenario) -> bool:
    """Whether another worker made just this file meanwhile, where folders cannot be locked."""
    try:
        return _same_failure(load(path), scenario)
    except (InvalidScenario, OSError):
        return False


def _same_failure(one: Scenario, two: Scenario) -> bool:
    return (one.test, fingerprint(one.violates, one.steps)) == (two.test, fingerprint(two.violates, two.steps))


def _is_better(new: Scenario, old: Scenario) -> bool:
    if len(new.steps) != len(old.steps):
        return len(new.steps) < len(old.steps)
    # Without a measured rate on both sides, nothing says that the author's own steps are worse.
    return (
        new.repro is not None
        and old.repro is not None
        and new.repro.failed * old.repro.runs > old.repro.failed * new.repro.runs
    )


def _replace(path: Path, scenario: Scenario) -> None:
    before = path.read_bytes()
    content = update_text(before.decode("utf-8-sig"), scenario, os.fspath(path)).encode()
    if content == before:
        return
    target = path.resolve()  # a link stays one
    with written(target, content, target.stat().st_mode & 0o777) as temporary:
        os.rename(temporary, target)


def _create(path: Path, content: bytes) -> bool:
    """Makes a new file with all its content at once; False if there is one of that name."""
    with written(path, content, 0o644) as temporary:
        return _link(temporary, path)


def _link(temporary: str, path: Path) -> bool:
    try:
        os.link(temporary, path)  # unlike a rename, it never replaces a file that another worker just made
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without hard links: the nearest to it.
        if path.exists():
            return False
        os.rename(temporary, path)
    return True
