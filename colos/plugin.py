"""The pytest plugin: a `ChaosMachine` named Test… becomes items that explore and that replay.

Imports nothing heavy until a chaos machine is collected: whoever does not use it does not pay.
The items themselves are in `colos.chaos.items`.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Generator, Iterable
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
#: Shorter than what `int` refuses to read.
_WHOLE_NUMBER = re.compile("[0-9]{1,100}")
_SUITE = pytest.StashKey["Suite"]()
_SEED = pytest.StashKey[int]()
#: What an exploration came to, on its report: so it crosses from the workers of pytest-xdist.
_ON_REPORT = "colos"


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
        least = 0 if name == "seed" else 1
        if value is not None and not (_WHOLE_NUMBER.fullmatch(value) and int(value) >= least):
            raise pytest.UsageError(f"{_written(config, name)}: a whole number is needed, {least} or more")
    if option(config, "sandbox") not in (None, "namespaces", "bare"):
        raise pytest.UsageError(f"{_written(config, 'sandbox')}: allowed are 'namespaces' and 'bare'")


def option(config: pytest.Config, name: str) -> str | None:
    """An option's value: the command line's, else the ini file's, else None."""
    return config.getoption(f"colos_{name}") or config.getini(f"colos_{name}") or None


def _written(config: pytest.Config, name: str) -> str:
    """An option with its value as the user gave it."""
    given = config.getoption(f"colos_{name}")
    return f"--colos-{name}={given}" if given else f"{config.inipath}: colos_{name} = {config.getini(f'colos_{name}')}"


def suite(config: pytest.Config) -> Suite:
    """What the chaos items of this run share; made when it is first asked for."""
    if _SUITE not in config.stash:
        from colos.chaos.items import Suite

        config.stash[_SUITE] = Suite(
            config,
            scenarios=config.rootpath / (option(config, "scenarios") or "scenarios"),
            examples=_number(option(config, "examples")),
            steps=_number(option(config, "steps")),
            seed=_seed(config),
            sandbox=option(config, "sandbox"),
        )
    return config.stash[_SUITE]


def _number(text: str | None) -> int | None:
    return int(text) if text is not None else None


def _seed(config: pytest.Config) -> int:
    """The option's, else one for the whole run, with which the workers of pytest-xdist are sent out."""
    given = _number(option(config, "seed"))
    if given is not None:
        return given
    if _SEED not in config.stash:
        sent: int | None = getattr(config, "workerinput", {}).get("colos_seed")
        config.stash[_SEED] = random.SystemRandom().randrange(1 << 32) if sent is None else sent
    return config.stash[_SEED]


def _whole(config: pytest.Config) -> bool:
    """Whether all of the project was asked for, and not some arguments' tests."""
    sent: bool | None = getattr(config, "workerinput", {}).get("colos_whole")
    return config.args_source is not pytest.Config.ArgsSource.ARGS if sent is None else sent


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist what only its controller knows."""
    node.workerinput["colos_seed"] = _seed(node.config)
    node.workerinput["colos_whole"] = _whole(node.config)


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
    whole = _whole(config)
    folder: Path = config.rootpath / (option(config, "scenarios") or "scenarios")
    if _SUITE in config.stash or (whole and any(folder.glob("**/*.toml"))):
        items.extend(suite(config).unusable(session, whole=whole))


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """The tier and the faults of this machine; only where there is something to break."""
    if _SUITE not in config.stash or config.option.collectonly:
        return []
    return config.stash[_SUITE].header()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put what an exploration came to on its report."""
    report = yield
    if call.when == "call" and _SUITE in item.config.stash:
        shared = item.config.stash[_SUITE]
        lines = shared.take_summary(item.nodeid)
        if lines:
            header = shared.header() if hasattr(item.config, "workerinput") else []
            setattr(report, _ON_REPORT, {"header": header, "lines": lines})
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What each exploration came to; with pytest-xdist also the header, which workers cannot print."""
    reports = [report for of_outcome in terminalreporter.stats.values() for report in of_outcome]
    told = [report for report in reports if hasattr(report, _ON_REPORT)]
    told.sort(key=lambda report: report.start)
    header = dict.fromkeys(line for report in told for line in getattr(report, _ON_REPORT)["header"])
    _write(terminalreporter, [*header, *(line for report in told for line in getattr(report, _ON_REPORT)["lines"])])


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
