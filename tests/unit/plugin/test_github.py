"""What GitHub is told: annotations in its own escaping, and a summary of the job."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from colos.chaos.github import errors, markdown

STARTED_TWICE = '{ fault = "kill", target = "box" }'


def entry(outcome: str, name: str, line: str, **other: object) -> dict[str, object]:
    return {"outcome": outcome, "name": name, "line": line, "details": [], "violated": "", "file": "", "at": 1} | other


def test_an_annotation_is_escaped_as_github_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_WORKSPACE", "/repository")
    told = [
        entry("held", "fine", ""),
        entry("known", "old", "we know", violated="always:a"),
        entry("new", "t::explore", "100 %", violated="always:a,b", file="/repository/a/x,y.py", at=7, details=["d\rd"]),
    ]
    assert list(errors(told, Path("/elsewhere"))) == [
        "::error file=a/x%2Cy.py,line=7,title=new%3A always%3Aa%2Cb::t::explore: 100 %25%0Ad%0Dd"
    ]


def test_the_summary_is_a_table_with_the_worst_first() -> None:
    told = [entry("fixed", "a", ""), entry("new", "b|c", "x <y>", details=["b: 2 examples"])]
    assert markdown(told, {"gone.toml": "there is no machine"}).splitlines() == [
        "### ColOS",
        "",
        "| outcome | item | |",
        "| --- | --- | --- |",
        "| new | b\\|c | x &lt;y> |",
        "| fixed | a |  |",
        "",
        "    b: 2 examples",
        "    orphaned: gone.toml: there is no machine",
        "",
    ]


def test_a_failure_is_annotated_where_its_machine_is_written(project, killed, monkeypatch):
    """Under pytest-xdist too, once; a summary that cannot be written changes no exit code."""
    project.box(killed, "class TestHolds(Box):\n    pass\n", name="tests/test_box.py")
    project.scenario("twice", "tests/test_box.py::TestKilled", "always:started_once", STARTED_TWICE)
    project.scenario("gone", "tests/test_box.py::TestGone", "always:x", STARTED_TWICE)
    few = ("-k", "scenario or Holds", "--colos-examples=1", "--colos-steps=1", "--colos-seed=1")
    summary = project.path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    summary.write_text("before\n")
    text = project.pytest(*few, "-n", "2").stdout.str()
    line = (project.path / "tests/test_box.py").read_text().splitlines().index("class TestKilled(Box):") + 1
    found = re.findall(r"^::error (.*)$", text, re.MULTILINE)
    assert found == [
        f"file=tests/test_box.py,line={line},title=failed%3A always%3Astarted_once::twice: 3 of 3",
    ]
    written = summary.read_text()
    assert written.startswith("before\n### ColOS\n")
    assert "| failed | twice | 3 of 3 |" in written
    assert written.count("orphaned: scenarios/gone.toml") == 1

    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path / "no folder/summary.md"))
    unwritten = project.pytest(*few, "-k", "Holds")
    assert unwritten.ret == 0
    unwritten.stdout.fnmatch_lines(["colos: the job's summary cannot be written: *"])
    assert "::error" not in unwritten.stdout.str()
