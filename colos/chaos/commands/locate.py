"""From a scenario's file to the machine that it is about, without pytest."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from colos.chaos.machine import ChaosMachine
from colos.chaos.scenario import Scenario
from colos.chaos.telling import short
from colos.errors import InvalidScenario
from colos.spelling import closest

__all__ = ["machine_of", "project_of"]

_MARKS = ("pyproject.toml", "pytest.ini", "setup.cfg", "tox.ini", ".git")


def project_of(path: Path) -> Path:
    """The project's folder: the nearest parent of a file that looks like one, else the nearest of where we are."""
    for start in (path.resolve().parent, Path.cwd()):
        for folder in (start, *start.parents):
            if any((folder / mark).exists() for mark in _MARKS):
                return folder
    return Path.cwd()


def machine_of(path: Path, scenario: Scenario) -> type[ChaosMachine]:
    """The class that a scenario's `test` names: ``tests/test_x.py::TestX``, or ``package.module::TestX``.

    Raises `InvalidScenario` where there is none, where its module cannot be imported, and where only pytest can
    make one (it needs fixtures).
    """
    place, _, names = scenario.test.partition("::")
    root = project_of(path)
    try:
        module = _from_file(root, root / place) if place.endswith(".py") else _from_name(root, place)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also what pytest.skip raises at the top of a module
        problem = f"{place!r} cannot be imported: {short(error)}"
        raise InvalidScenario(str(path), "test", problem, _where(error, root)) from None
    if module is None:
        raise InvalidScenario(str(path), "test", f"there is no {place!r} in {root}", f"'test' is {scenario.test!r}")
    found: object = module
    for name in names.split("::"):
        found = getattr(found, name, None)
    if not (isinstance(found, type) and issubclass(found, ChaosMachine)):
        problem = f"{place!r} has no chaos machine {names!r}"
        raise InvalidScenario(str(path), "test", problem, closest(names, list(_machines(module))))
    fixtures = _fixtures(found)
    if fixtures:
        command = f"pytest '{scenario.test}::scenario[{path.stem}]'"
        problem = f"{names} takes the fixture {fixtures[0]!r}, which only pytest can make"
        raise InvalidScenario(str(path), "test", problem, f"run it by pytest: {command}")
    return found


def _where(error: BaseException, root: Path) -> str:
    """The last place of the project's that an exception came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(root) and frame.filename != __file__]
    return f"see {own[-1].filename}, line {own[-1].lineno}" if own else ""


def _machines(module: ModuleType) -> Iterator[str]:
    for name, value in vars(module).items():
        if isinstance(value, type) and issubclass(value, ChaosMachine) and value is not ChaosMachine:
            yield name


def _fixtures(cls: type[ChaosMachine]) -> list[str]:
    """What its ``__init__`` cannot do without."""
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return [each.name for each in parameters if each.kind in named and each.default is inspect.Parameter.empty]


def _from_name(root: Path, name: str) -> ModuleType | None:
    _reachable(root)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            return None
        raise  # it is there, and something that it imports is not


def _from_file(root: Path, file: Path) -> ModuleType | None:
    """A test module, under the name that pytest gives it: its packages' names, and from the folder above them."""
    if not file.is_file():
        return None
    top = file.parent
    while (top / "__init__.py").exists() and top != root.parent:
        top = top.parent
    _reachable(root)
    _reachable(top)
    name = ".".join(file.relative_to(top).with_suffix("").parts)
    module = sys.modules.get(name)
    if module is None and _is_this(name, file):
        module = importlib.import_module(name)
    if module is None or _file_of(module) != file.resolve():
        module = _apart(root, file)
    return module


def _is_this(name: str, file: Path) -> bool:
    found = importlib.util.find_spec(name)
    return found is not None and found.origin is not None and Path(found.origin).resolve() == file.resolve()


def _file_of(module: ModuleType) -> Path | None:
    return Path(module.__file__).resolve() if module.__file__ else None


def _apart(root: Path, file: Path) -> ModuleType:
    """Another file has taken the name, or the path leads nowhere: imported by its whole path in the project."""
    name = ".".join(file.resolve().relative_to(root.resolve()).with_suffix("").parts)
    if name in sys.modules and _file_of(sys.modules[name]) == file.resolve():
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _reachable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
