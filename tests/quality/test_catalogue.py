"""docs/faults.md is what the registry says, and every kind says all that it needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from colos.chaos.catalogue import document, example, shipped
from colos.chaos.fault import FAMILIES
from colos.chaos.scenario import Inject, loads

DOCUMENT = Path(__file__).parents[2] / "docs" / "faults.md"
KINDS = shipped()


def test_the_document_is_what_the_registry_gives() -> None:
    assert DOCUMENT.read_text() == document(KINDS), "python -m colos.chaos.catalogue > docs/faults.md"


def test_every_kind_has_its_chapter_and_its_line_in_the_overview() -> None:
    text = document(KINDS)
    assert re.findall(r"^### (\S+)$", text, re.M) == re.findall(r"\(#(\S+)\)", text)
    assert sorted(re.findall(r"^### (\S+)$", text, re.M)) == sorted(KINDS)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_kind_says_what_a_reader_asks(name: str) -> None:
    kind = KINDS[name]
    assert kind.family in FAMILIES
    for said in (kind.summary, kind.sees, kind.proof, kind.__dict__.get("__doc__")):
        assert said
        assert said.strip() == said or said is kind.__doc__
    assert "\n" not in kind.summary + kind.sees + kind.proof, "each is a line"


@pytest.mark.parametrize("name", sorted(KINDS))
def test_the_docstring_names_every_parameter(name: str) -> None:
    kind = KINDS[name]
    unnamed = [each for each in kind.parameters if not re.search(rf"\b{re.escape(each)}\b", kind.__doc__ or "")]
    assert not unnamed, f"{kind.__name__}'s docstring does not say what these are: {', '.join(unnamed)}"


@pytest.mark.parametrize("name", sorted(KINDS))
def test_the_example_is_a_step_that_is_read_back(name: str) -> None:
    kind = KINDS[name]
    line = example(kind)
    assert f"```toml\n{line}\n```" in DOCUMENT.read_text()
    text = f'format = 1\ntest = "t.py::T"\nviolates = "always:x"\nsteps = [\n{line}\n]\n'
    assert tomllib.loads(text)["steps"][0]["fault"] == name
    (step,) = loads(text).steps
    assert isinstance(step, Inject)
    assert (step.fault, step.target is not None, step.args) == (name, kind.targeted, dict(kind.parameters))
