"""`colos attach ACTOR`: a Python prompt inside a living process; see `terminal`, which is at the other end."""

from __future__ import annotations

import ast
import codeop
import select
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from colos.runtime import message, transport
from colos.runtime.terminal import receive_packet, send_packet
from colos.runtime.tools import find

_GREETING_S: Final = 5.0


class _Gone(Exception):
    """The process at the other end has ended."""


def attach(target: str, node_name: str | None = None, write: bool = False) -> int:
    """Be the prompt until Ctrl-D, or, where stdin is no terminal, until its end."""
    found = None
    try:
        _, found = find.living(target, node_name)
        with transport.connect(found.directory) as connection:
            connection.settimeout(_GREETING_S)
            connection.sendall(message.encode(message.ATTACH, int(write)))
            with _Interrupts() as interrupts:
                _Prompt(connection, interrupts).run()
    except TimeoutError:
        where = target if found is None else f"{found.path} (pid {found.pid})"
        return find.complain(f"{where} does not answer: its event loop does not turn; `colos stack {target}` says why")
    except (_Gone, ConnectionError):
        return find.complain(f"{target} has ended, or closed this terminal: `colos ps` says which")
    except KeyboardInterrupt:
        print()
        return 0
    except find.FAILURES as error:
        return find.complain(error)
    return 0


class _Interrupts:
    """Ctrl-C: a KeyboardInterrupt while a line is read, else something to wait for, so that no packet is torn apart."""

    def __init__(self) -> None:
        self.waiting = 0
        """How many came that nobody has looked at."""
        self._may_raise = False
        self.bell, self._ours = socket.socketpair()
        for end in (self.bell, self._ours):
            end.setblocking(False)

    def __enter__(self) -> _Interrupts:
        self._wakeup = signal.set_wakeup_fd(self._ours.fileno(), warn_on_full_buffer=False)
        self._handler = signal.signal(signal.SIGINT, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._handler)
        signal.set_wakeup_fd(self._wakeup)
        self.bell.close()
        self._ours.close()

    def _take(self, *_: object) -> None:
        if self._may_raise:
            raise KeyboardInterrupt
        self.waiting += 1

    @contextmanager
    def raised(self, flag: bool) -> Iterator[None]:
        """Whether they are raised within."""
        before, self._may_raise = self._may_raise, flag
        try:
            yield
        finally:
            self._may_raise = before

    def drain(self) -> None:
        """Stop the bell."""
        try:
            while self.bell.recv(64):
                pass
        except BlockingIOError:  # it is empty
            pass


class _Prompt:
    """The client's side of one terminal."""

    def __init__(self, connection: socket.socket, interrupts: _Interrupts) -> None:
        self._connection = connection
        self._interrupts = interrupts
        self._compile = codeop.CommandCompiler()
        self._compile.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self._words: list[str] = []
        self._at_terminal = sys.stdin.isatty()

    def run(self) -> None:
        """Greet, and converse until the end of the input."""
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        print(self._receive().get("text", ""), end="", file=sys.stdout if self._at_terminal else sys.stderr, flush=True)
        self._connection.settimeout(None)
        if self._at_terminal:
            self._edit_lines()
        lines: list[str] = []
        while True:
            try:
                with self._interrupts.raised(True):
                    self._interrupts.waiting = 0  # what came before this line was not meant for it
                    line = self._read_line("... " if lines else ">>> ")
            except EOFError:
                break
            except KeyboardInterrupt:
                print("\nKeyboardInterrupt")
                lines.clear()
                continue
            lines.append(line)
            source = "\n".join(lines)
            if source.strip() and self._is_unfinished(source):
                continue
            lines.clear()
            self._do(source)
        if self._at_terminal:
            print()
        self._do("\n".join(lines))

    def _read_line(self, prompt: str) -> str:
        if self._at_terminal:
            return input(prompt)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    def _is_unfinished(self, source: str) -> bool:
        try:
            return self._compile(source, "<prompt>", "single") is None
        except (SyntaxError, ValueError, OverflowError):  # the other end says what is wrong with it
            return False

    def _do(self, source: str) -> None:
        if not source.strip():
            return
        send_packet(self._connection, {"do": "run", "text": source})
        told = False
        while self._connection not in select.select([self._connection, self._interrupts.bell], [], [])[0]:
            self._interrupts.drain()
            waiting, self._interrupts.waiting = self._interrupts.waiting, 0
            if waiting and told:  # a command that cannot be interrupted goes on without its prompt
                raise KeyboardInterrupt
            if waiting:
                told = True
                send_packet(self._connection, {"do": "interrupt"})
        self._interrupts.waiting = 0
        sys.stdout.write(str(self._receive().get("text", "")))
        sys.stdout.flush()

    def _receive(self) -> dict[str, object]:
        try:
            packet = receive_packet(self._connection)
        except ConnectionResetError:
            packet = None
        if packet is None:
            raise _Gone
        return packet

    # --- at a terminal

    def _edit_lines(self) -> None:
        try:
            import readline  # with it, input() has history and keys
        except ImportError:  # a Python without it
            return
        readline.set_completer(self._complete)
        readline.set_completer_delims(" \t\n`~!@#$%^&*()-=+[{]}\\|;:'\",<>/?")
        readline.parse_and_bind("tab: complete")

    def _complete(self, text: str, state: int) -> str | None:
        if state == 0:
            with self._interrupts.raised(False):
                send_packet(self._connection, {"do": "complete", "text": text})
                words = self._receive().get("words", [])
            self._words = [str(word) for word in words] if isinstance(words, list) else []
        return self._words[state] if state < len(self._words) else None
