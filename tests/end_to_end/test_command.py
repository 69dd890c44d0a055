"""The command, run as a user runs it: in a folder of its own, as a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from colos.chaos.scenario import load

PROMISED = [
    "1. Exploring the ledger as it was shipped",
    "found: always:no_acknowledged_job_is_lost",
    "2. Confirming and minimising",
    "3. Saving it",
    "4. Replaying the file, on the ledger as it was shipped",
    "violated again, as the file says",
    "5. Replaying the file, on the repaired ledger",
    "held: the promise is kept",
    "6. Exploring the repaired ledger: the same storm",
    "nothing violated",
    "faults that fired",
]


def colos(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "colos", *arguments], cwd=folder, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
@pytest.mark.parametrize("sandbox", ["namespaces", "bare"])
def test_the_demo_does_all_that_it_promises(tmp_path: Path, sandbox: str) -> None:
    done = colos(tmp_path, "demo", "--sandbox", sandbox, "--seed", "20261124")
    if sandbox == "namespaces" and "refused here" in done.stderr + done.stdout:
        pytest.skip("this kernel refuses namespaces")
    assert done.returncode == 0, done.stdout + done.stderr
    at = 0
    for line in PROMISED:
        assert line in done.stdout[at:], f"missing, or out of order: {line}\n{done.stdout}"
        at = done.stdout.index(line, at)
    fired = done.stdout.partition("faults that fired")[2]
    for family in ("kill", "disk-full", "descriptor-exhaustion", "cpu-starvation"):
        assert re.search(rf"{family} ×[1-9]", fired), fired
    (saved,) = (tmp_path / ".colos" / "demo").glob("*.toml")
    assert 2 <= len(load(saved).steps) <= 3


def test_the_doctor_names_every_fault(tmp_path: Path) -> None:
    done = colos(tmp_path, "doctor")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^sandbox +(namespaces|bare)", done.stdout, re.M)
    for family in ("kill", "disk-full", "descriptor-exhaustion", "cpu-starvation"):
        assert re.search(rf"^  {family} +\S", done.stdout, re.M), done.stdout


def test_who_reads_only_the_beginning_sees_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m colos doctor | head -n 1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.startswith("machine")
    assert done.stderr == ""


def test_bad_usage_says_what_is_allowed(tmp_path: Path) -> None:
    done = colos(tmp_path, "demo", "--sandbox", "cardboard")
    assert done.returncode == 2
    assert "namespaces" in done.stderr
    assert "bare" in done.stderr


def test_a_folder_that_takes_no_file_is_no_obstacle(tmp_path: Path) -> None:
    if os.getuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    try:
        done = colos(tmp_path, "doctor")
    finally:
        tmp_path.chmod(0o700)
    assert done.returncode == 0, done.stderr
