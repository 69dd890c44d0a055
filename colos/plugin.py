"""The pytest plugin: a `ChaosMachine` named Test… becomes items that explore and that replay.

Imports nothing heavy until a chaos machine is collected: whoever does not use it does not pay.
The items themselves are in `colos.chaos.items`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from colos.chaos.items import Suite

_OPTIONS = (
    ("examples", "how many examples to explore (default: the machine's settings, else 50)"),
    ("steps", "how many steps an example has at most (default: the machine's settings, else 12)"),
    ("seed", "the seed of the search (default: another one each run; a failure says which)"),
    ("sandbox", "the tier of the sandboxes: namespaces or bare (default: namespaces where they are to be had)"),
    ("scenarios", "the folder of saved scenarios (default: scenarios)"),
)
_SUITE = pytest.StashKey["Suite"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--colos-examples`` and its like, and an ini option ``colos_examples`` for each."""
    group = parser.getgroup("colos", "chaos testing with real OS faults")
    for name, text in _OPTIONS:
        group.addoption(f"--colos-{name}", dest=f"colos_{name}", default=None, metavar=name.upper(), help=text)
        parser.addini(f"colos_{name}", text, default="")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse bad option values before anything is collected."""
    for name in ("examples", "steps", "seed"):
        value = option(config, name)
        if value is not None and not (value.isdigit() and (int(value) > 0 or name == "seed")):
            raise pytest.UsageError(f"--colos-{name}={value}: a whole number is needed, above 0")
    sandbox = option(config, "sandbox")
    if sandbox not in (None, "namespaces", "bare"):
        raise pytest.UsageError(f"--colos-sandbox={sandbox}: allowed are 'namespaces' and 'bare'")


def option(config: pytest.Config, name: str) -> str | None:
    """An option's value: the command line's, else the ini file's, else None."""
    return config.getoption(f"colos_{name}") or config.getini(f"colos_{name}") or None


def suite(config: pytest.Config) -> Suite:
    """What the chaos items of this run share; made when it is first asked for."""
    if _SUITE not in config.stash:
        from colos.chaos.items import Suite

        config.stash[_SUITE] = Suite(
            config,
            scenarios=config.rootpath / (option(config, "scenarios") or "scenarios"),
            examples=_number(option(config, "examples")),
            steps=_number(option(config, "steps")),
            seed=_number(option(config, "seed")),
            sandbox=option(config, "sandbox"),
        )
    return config.stash[_SUITE]


def _number(text: str | None) -> int | None:
    return int(text) if text is not None else None


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: Any, name: str, obj: object) -> Any:
    """A chaos machine named Test… is collected by us; everything else as ever."""
    machine = sys.modules.get("colos.chaos.machine")
    if machine is None or not name.startswith("Test") or not isinstance(obj, type):
        return None
    if not issubclass(obj, machine.ChaosMachine) or obj is machine.ChaosMachine:
        return None
    from colos.chaos.items import ChaosClass

    return ChaosClass.from_parent(collector, name=name, obj=obj, suite=suite(collector.config))


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Scenario files that cannot be used become items that say so; the others still run."""
    whole = config.args_source is not pytest.Config.ArgsSource.ARGS
    folder: Path = config.rootpath / (option(config, "scenarios") or "scenarios")
    if _SUITE in config.stash or (whole and any(folder.glob("**/*.toml"))):
        items.extend(suite(config).unusable(session, whole=whole))


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """The tier and the faults of this machine; only where there is something to break."""
    if _SUITE not in config.stash or config.option.collectonly:
        return []
    return config.stash[_SUITE].header()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What each exploration came to."""
    if _SUITE in config.stash:
        _write(terminalreporter, config.stash[_SUITE].summary())


def _write(reporter: Any, lines: Iterable[str]) -> None:
    said = list(lines)
    if said:
        reporter.section("ColOS")
        for line in said:
            reporter.write_line(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the template, and with it whatever sandbox still stands."""
    if _SUITE in session.config.stash:
        session.config.stash[_SUITE].close()
