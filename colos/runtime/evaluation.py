"""Python at a prompt: one command evaluated, in this process or in a forked copy of it."""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import gc
import inspect
import io
import linecache
import os
import signal
import time
import traceback
from types import CodeType
from typing import Any, Final, NoReturn

import anyio

from colos.runtime import process

LIFE_S: Final = 5
"""How long a copy lives at most."""
_FILE: Final = "<prompt>"
_TEXT_MAX: Final = 1 << 20
_WORDS_MAX: Final = 200
_TURNS: Final = 100
"""After so many turns of an event loop that has nothing else to do, whatever is not done waits for something."""
_CANNOT_WAIT: Final = (
    "it waits for something: a read-only prompt is a copy of the process and cannot wait for others (see --write)\n"
)


def backend_of_this_loop() -> str:
    """The name of the event loop that runs here."""
    return "trio" if anyio.get_cancelled_exc_class().__module__.startswith("trio") else "asyncio"


class Evaluation:
    """One command.  What it prints, what it is worth and what it raises comes out as text in `out`."""

    def __init__(self, source: str, names: dict[str, Any], out: io.TextIOBase | None = None) -> None:
        self.source = source
        self.names = names
        self.out: io.TextIOBase = out or io.StringIO()
        self.fine = True
        """False once it has raised something."""
        self._parts: list[tuple[CodeType, bool]] = []

    @property
    def needs_loop(self) -> bool:
        """Whether it awaits."""
        return any(code.co_flags & inspect.CO_COROUTINE for code, _ in self._parts)

    def text(self) -> str:
        """What came out, where that is kept here."""
        said = self.out.getvalue() if isinstance(self.out, io.StringIO) else ""
        return said if len(said) <= _TEXT_MAX else f"{said[:_TEXT_MAX]}…\n({len(said)} characters in all)\n"

    def compile(self) -> bool:
        """Make it ready to run; False if it is no Python."""
        try:
            body = ast.parse(self.source, _FILE).body
            last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
            self._parts = [(self._code(ast.Module(body, [])), False)] if body else []
            if isinstance(last, ast.Expr):
                self._parts.append((self._code(ast.Expression(last.value)), True))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            self._say(error)
        return self.fine

    @staticmethod
    def _code(tree: ast.Module | ast.Expression) -> CodeType:
        mode = "eval" if isinstance(tree, ast.Expression) else "exec"
        made: CodeType = compile(tree, _FILE, mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        return made

    async def run(self) -> None:
        """Run it.  Everything but the cancellation of who runs it is caught, and told in `out`."""
        # Not sys.stdout: the prints of what else runs in this process are not this command's.
        self.names["print"] = functools.partial(print, file=self.out)
        try:
            for code, shown in self._parts:
                value = eval(code, self.names)  # noqa: S307 - a prompt is for this
                if code.co_flags & inspect.CO_COROUTINE:
                    value = await value
                if shown and value is not None:
                    self.out.write(f"{value!r}\n")
                    self.names["_"] = value
        except BaseException as error:
            if _is_cancellation(error):
                raise
            self._say(error)

    def run_without_loop(self) -> None:
        """The same where nothing is awaited."""
        with contextlib.suppress(StopIteration):
            self.run().send(None)

    def _say(self, error: BaseException) -> None:
        self.fine = False
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename != _FILE:
            frames = frames.tb_next
        lines = self.source.splitlines(keepends=True)
        linecache.cache[_FILE] = (len(self.source), None, lines, _FILE)
        try:
            self.out.write("".join(traceback.format_exception(type(error), error, frames)))
        except Exception as broken:  # its __str__ is the author's code
            self.out.write(f"{type(error).__name__}, whose text cannot be had: {type(broken).__name__}\n")
        finally:
            del linecache.cache[_FILE]


def _is_cancellation(error: BaseException) -> bool:
    try:
        return isinstance(error, anyio.get_cancelled_exc_class())
    except Exception:  # no event loop runs here
        return False


def complete(word: str, names: dict[str, Any]) -> list[str]:
    """How a word may go on: `actor.to` as `actor.total`.  Only names and attributes are looked at."""
    owner, dot, start = word.rpartition(".")
    if dot:
        if not all(part.isidentifier() for part in owner.split(".")):
            return []
        try:
            found = dir(eval(owner, names))  # noqa: S307 - identifiers and dots
        except Exception:  # no such name, or a property that raises
            return []
    else:
        found = [*names, *dir(builtins)]
    fitting = sorted(name for name in found if name.startswith(start) and (start or not name.startswith("_")))
    return [f"{owner}{dot}{name}" for name in fitting[:_WORDS_MAX] if name != "__complete__"]


# --- copies ------------------------------------------------------------------------------


class _PipeWriter(io.TextIOBase):
    """Text that leaves at once, so that what was said before a death is not lost."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        data = text.encode(errors="backslashreplace")
        while data:
            data = data[os.write(self._descriptor, data) :]
        return len(text)


class Copy:
    """A fork of this process that evaluates one command and ends.  `pid` is 0 in the copy itself."""

    def __init__(self) -> None:
        self.pid = -1
        self.ended = False
        self.reading, self._writing = os.pipe()
        self._said = bytearray()
        self._deadline = time.monotonic() + LIFE_S + 1

    def fork(self) -> None:
        """Make it.  Only by a thread that lives until `finish`: the copy dies with that.  Raises OSError."""
        parent = os.getpid()
        try:
            self.pid = os.fork()
        except OSError:
            os.close(self.reading)
            os.close(self._writing)
            raise
        if self.pid:
            os.close(self._writing)
        elif not _bound(parent):
            os._exit(1)

    # --- in the copy

    def be(self, command: Evaluation, before: list[str], backend: str) -> NoReturn:
        """Run a command after what is repeated before it; then there is no copy any more."""
        try:
            # A shared descriptor has a shared position, and an event loop's belongs to the live process.
            process.close_all_but(self._writing)
            for descriptor in (1, 2):  # what C code says, above all of a crash
                os.dup2(self._writing, descriptor)
            process.reset_signals()
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            gc.disable()
            out = _PipeWriter(self._writing)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                for source in before:
                    self._run(Evaluation(source, command.names), backend)
                command.out = out
                self._run(command, backend)
            os._exit(0 if command.fine else 1)
        except BaseException:
            os.write(self._writing, traceback.format_exc().encode(errors="backslashreplace"))
        finally:
            os._exit(1)

    def _run(self, command: Evaluation, backend: str) -> None:
        command.compile()
        if command.needs_loop:
            anyio.run(_run_until_it_waits, command, backend=backend)
        else:
            command.run_without_loop()

    # --- beside it

    def read(self) -> None:
        """Take what it says, when it says something."""
        data = os.read(self.reading, 1 << 16)
        self._said += data
        self.ended = not data or len(self._said) > _TEXT_MAX or time.monotonic() > self._deadline

    def finish(self) -> tuple[str, bool]:
        """End it, if it has not; all it said, and whether it ended well."""
        os.close(self.reading)
        interrupted = not self.ended
        if interrupted or len(self._said) > _TEXT_MAX:
            os.kill(self.pid, signal.SIGKILL)
        try:
            status = os.waitpid(self.pid, 0)[1]
        except ChildProcessError:  # the author's code waits for every child, or ignores SIGCHLD
            status = 0
        text = self._said[:_TEXT_MAX].decode(errors="replace")
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGALRM:
            text += f"it took longer than {LIFE_S} s: the copy is gone\n"
        elif interrupted:
            text += "interrupted: the copy is gone\n"
        elif code < 0:
            text += f"the copy died: {process.describe_status(status)}\n"
        return text, code == 0


def _bound(parent: int) -> bool:
    """Give a fresh copy its end."""
    signal.setitimer(signal.ITIMER_REAL, LIFE_S)
    return process.die_with_parent(parent)


async def _run_until_it_waits(command: Evaluation) -> None:
    done = False

    async def run() -> None:
        nonlocal done
        await command.run()
        done = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        for _ in range(_TURNS):
            await anyio.lowlevel.checkpoint()
            if done:
                return
        command.fine = False
        command.out.write(_CANNOT_WAIT)
        tasks.cancel_scope.cancel()
