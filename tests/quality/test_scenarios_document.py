"""docs/scenarios.md is true: each of its files loads, and each tag that there is has its example."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from colos.chaos.fault import Fault
from colos.chaos.faults import fault_kinds
from colos.chaos.machine import ChaosMachine
from colos.chaos.scenario import Inject, dumps, load, loads, renamed, save, update_text
from colos.chaos.scenario_read import _KEYS
from colos.chaos.values import _ALL_TAGS

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "scenarios.md").read_text()
FILES = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)


@pytest.mark.parametrize("text", FILES)
def test_each_file_of_the_document_is_a_scenario_of_known_faults(text: str) -> None:
    scenario = renamed(loads(text))
    kinds: dict[str, type[Fault]] = fault_kinds()
    assert all(step.fault in kinds for step in scenario.steps if isinstance(step, Inject))
    assert dumps(loads(dumps(scenario))) == dumps(scenario)
    assert update_text(text, scenario) == text


def test_each_tag_and_each_key_has_an_example() -> None:
    text = "".join(FILES)
    assert [tag for tag in _ALL_TAGS if f'"{tag}"' not in text] == []
    assert [key for key in _KEYS if not re.search(rf"^{key} *=", text, re.MULTILINE)] == []
    assert [key for key in _KEYS if f"| `{key}` |" not in DOCUMENT] == []


def test_the_aliases_of_the_document_are_aliases() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    machine = block.partition("aliases = ")[2]
    aliases = dict(re.findall(r'"(.+)": "(.+)",', machine))
    assert len(aliases) == 3
    assert isinstance(ChaosMachine.aliases, dict)
    old = 'format = 1\ntest = "t"\nviolates = "always:sane"\nsteps = [{ op = "pay", sum = 1 }]'
    new = 'format = 1\ntest = "t"\nviolates = "always:balanced"\nsteps = [{ op = "deposit", amount = 1 }]'
    assert renamed(loads(old), aliases) == loads(new)


@pytest.mark.parametrize("path", sorted((ROOT / "scenarios").glob("**/*.toml")), ids=lambda path: path.stem)
def test_the_files_of_this_repository_are_named_as_they_would_be_saved(path: Path, tmp_path: Path) -> None:
    assert save(load(path), tmp_path).name == path.name
