"""The pytest plugin: a `ChaosMachine` named Test… becomes items that explore and that replay.

Imports nothing heavy until a chaos machine is collected: whoever does not use it does not pay.
The items themselves are in `colos.chaos.items`.
"""

from __future__ import annotations

import os
import random
import re
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from colos.chaos.suite import Demands, Suite

_OPTIONS = (
    ("examples", "how many examples to explore (default: the machine's settings, else 50)"),
    ("steps", "how many steps an example has at most (default: the machine's settings, else 12)"),
    ("seed", "the seed of the search (default: another one each run; a failure says which)"),
    ("sandbox", "the tier of the sandboxes: namespaces or bare (default: namespaces where they are to be had)"),
    ("scenarios", "the folder of saved scenarios (default: scenarios)"),
    ("replay-runs", "how often a saved scenario is run at most (default: 30)"),
    ("minimise", "how many seconds minimising a failure may take (default: 60)"),
    ("profile", "how much work: dev, ci, nightly, or one of the ini option colos_profiles"),
    ("require", "kinds of fault, by commas: where one of them is unavailable, what declares it fails"),
)
_NUMBERS = ("examples", "steps", "seed", "replay-runs", "minimise")
#: Shorter than what `int` refuses to read.
_WHOLE_NUMBER = re.compile("[0-9]{1,100}")
_SUITE = pytest.StashKey["Suite"]()
_SEED = pytest.StashKey[int]()
#: What workers of pytest-xdist say of orphaned scenarios, on their controller.
_ORPHANS: pytest.StashKey[dict[str, str]] = pytest.StashKey()
#: What an item came to, on its report: so it crosses from the workers of pytest-xdist.
_ON_REPORT = "colos"


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--colos-examples`` and its like, and an ini option ``colos_examples`` for each."""
    group = parser.getgroup("colos", "chaos testing with real OS faults")
    for name, text in _OPTIONS:
        group.addoption(f"--colos-{name}", dest=_key(name), default=None, metavar=name.upper(), help=text)
        parser.addini(_key(name), text, default="")
    strict = "what was not exercised is a failure, and so is a scenario whose machine is gone"
    group.addoption("--colos-strict", dest="colos_strict", action="store_true", default=None, help=strict)
    parser.addini("colos_strict", strict, type="bool", default=False)
    parser.addini("colos_profiles", "profiles, one a line: NAME: examples=500 steps=30", type="linelist", default=[])


def pytest_configure(config: pytest.Config) -> None:
    """Refuse bad option values before anything is collected."""
    for name in _NUMBERS:
        value = option(config, name)
        least = 0 if name == "seed" else 1
        if value is not None and not (_WHOLE_NUMBER.fullmatch(value) and int(value) >= least):
            raise pytest.UsageError(f"{_written(config, name)}: a whole number is needed, {least} or more")
    if option(config, "sandbox") not in (None, "namespaces", "bare"):
        raise pytest.UsageError(f"{_written(config, 'sandbox')}: allowed are 'namespaces' and 'bare'")
    _profile(config)
    if option(config, "require") is not None:
        _required(config)


def _key(name: str) -> str:
    return f"colos_{name.replace('-', '_')}"


def option(config: pytest.Config, name: str) -> str | None:
    """An option's value: the command line's, else the ini file's, else None."""
    return config.getoption(_key(name)) or config.getini(_key(name)) or None


def _written(config: pytest.Config, name: str) -> str:
    """An option with its value as the user gave it."""
    given = config.getoption(_key(name))
    return f"--colos-{name}={given}" if given else f"{config.inipath}: {_key(name)} = {config.getini(_key(name))}"


def _profile(config: pytest.Config) -> dict[str, int]:
    """The numbers of the chosen profile; none without one."""
    lines, chosen = config.getini("colos_profiles"), option(config, "profile")
    if not lines and chosen is None:
        return {}
    from colos import profiles

    try:
        profiles.read(lines, None)
    except ValueError as error:
        raise pytest.UsageError(f"{config.inipath}: colos_profiles: {error}") from None
    try:
        return dict(profiles.read(lines, chosen))
    except ValueError as error:
        raise pytest.UsageError(f"{_written(config, 'profile')}: {error}") from None


def _required(config: pytest.Config) -> frozenset[str]:
    """The kinds that `--colos-require` names."""
    given = option(config, "require")
    if given is None:
        return frozenset()
    from colos.chaos.faults import fault_kinds
    from colos.spelling import closest

    kinds = frozenset(filter(None, (kind.strip() for kind in given.split(","))))
    for kind in sorted(kinds - fault_kinds().keys()):
        raise pytest.UsageError(
            f"{_written(config, 'require')}: there is no fault {kind!r}; {closest(kind, fault_kinds())}"
        )
    return kinds


def suite(config: pytest.Config) -> Suite:
    """What the chaos items of this run share; made when it is first asked for."""
    if _SUITE not in config.stash:
        from colos.chaos.outcomes import Options
        from colos.chaos.suite import Suite

        profile = _profile(config)
        numbers = {name: _number(option(config, name)) or profile.get(name) for name in _NUMBERS if name != "seed"}
        default = Options()
        config.stash[_SUITE] = Suite(
            config,
            scenarios=_folder(config),
            options=Options(
                examples=numbers["examples"],
                steps=numbers["steps"],
                seed=_seed(config),
                minimise_s=numbers["minimise"] or default.minimise_s,
                replay_runs=numbers["replay-runs"] or default.replay_runs,
            ),
            sandbox=option(config, "sandbox"),
            demands=_demands(config),
        )
    return config.stash[_SUITE]


def _demands(config: pytest.Config) -> Demands:
    from colos.chaos.suite import Demands

    strict = bool(config.getoption("colos_strict") or config.getini("colos_strict"))
    return Demands(strict, _required(config))


def _folder(config: pytest.Config) -> Path:
    return config.rootpath / (option(config, "scenarios") or "scenarios")


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


# --- pytest-xdist ------------------------------------------------------------------------


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist what only its controller knows."""
    node.workerinput["colos_seed"] = _seed(node.config)
    node.workerinput["colos_whole"] = _whole(node.config)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take from a worker what only a collection knows; every worker has the same."""
    output = getattr(node, "workeroutput", None) or {}  # a worker that was killed gave none
    known: dict[str, str] = node.config.stash.setdefault(_ORPHANS, {})
    known.update(output.get("colos_orphans", {}))


# --- items -------------------------------------------------------------------------------


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
    if _SUITE in config.stash or (whole and any(_folder(config).glob("**/*.toml"))):
        from colos.chaos.items import UnusableScenario

        for name, problem in suite(config).unusable(whole=whole):
            items.append(UnusableScenario.from_parent(session, name=name, problem=problem))


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """The tier and the faults of this machine; only where there is something to break."""
    if _SUITE not in config.stash or config.option.collectonly:
        return []
    return config.stash[_SUITE].header()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put what an item came to on its report, and into the properties that JUnit's XML shows."""
    take: Any = getattr(item, "take_told", None)
    told = take() if take is not None and call.when == "call" else None
    if told is not None:
        # Of a test that runs again, only the last run's.
        item.user_properties[:] = [each for each in item.user_properties if not each[0].startswith("colos_")]
        item.user_properties.extend(told.properties.items())
    report = yield
    if told is not None:
        from colos.chaos.told import on_report

        place: Any = getattr(item, "where", None)
        header = suite(item.config).header() if hasattr(item.config, "workerinput") else []
        setattr(report, _ON_REPORT, {"header": header, **on_report(told, place())})
    return report


# --- the end -----------------------------------------------------------------------------


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What each item came to; with pytest-xdist also the header, which workers cannot print."""
    if hasattr(config, "workerinput"):
        return  # a worker ends like any run, and its controller tells all of it
    counted = (found for outcome, found in terminalreporter.stats.items() if outcome != "rerun")
    reports = [report for found in counted for report in found]
    told = [report for report in reports if hasattr(report, _ON_REPORT)]
    told.sort(key=lambda report: report.start)
    entries = [getattr(report, _ON_REPORT) for report in told]
    told_by_workers: dict[str, str] = config.stash.setdefault(_ORPHANS, {})
    orphans = dict(told_by_workers)
    if _SUITE in config.stash and not config.option.collectonly:
        orphans |= config.stash[_SUITE].orphans
    if not entries and not orphans:
        return
    from colos.chaos import told as telling

    header = dict.fromkeys(line for entry in entries for line in entry["header"])
    terminalreporter.ensure_newline()
    terminalreporter.section("ColOS")
    for line in (*header, *telling.summary(entries), *telling.of_orphans(orphans)):
        terminalreporter.write_line(line)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from colos.chaos import github

        for line in github.errors(entries, config.rootpath):
            terminalreporter.write_line(line)
        try:
            github.append_summary(entries, orphans)
        except OSError as error:  # no verdict of a test: the run's exit code stays what it is
            terminalreporter.write_line(f"colos: the job's summary cannot be written: {error}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the template, and with it whatever sandbox still stands."""
    if _SUITE in session.config.stash:
        shared = session.config.stash[_SUITE]
        output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["colos_orphans"] = shared.orphans
        shared.close()
