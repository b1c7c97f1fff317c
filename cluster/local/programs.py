"""Child programs of this process: started until ready, and always ended with it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from icre.errors import IcreError, UserError

START_TIMEOUT_S = 60.0
_POLL_S = 0.1
_LOG_LINES = 15
# Below Linux's range for ports of outgoing connections, so a restart finds its ports free.
_PORTS = range(20_000, 32_000)
# Linux treats the *thread* that started a program as its parent. This thread lives as long as the process.
_STARTER = ThreadPoolExecutor(1, thread_name_prefix="starter-of-programs")
# Requests SIGKILL on the parent's death (PR_SET_PDEATHSIG is 1), then executes the program. Not `preexec_fn`, which
# forks a process that may have threads. The parent may have died before the request.
_WITH_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""
_GUARD = """
import pathlib, sys
from cluster.local.programs import end_all
sys.stdin.buffer.read()
end_all(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]))
"""


class Program:
    """One program with a log. It dies with this process; on Linux also if this process is killed by SIGKILL.

    ``label`` names it in errors; ``guarded``: a :class:`Guard` ends it instead.
    """

    def __init__(
        self,
        label: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        guarded: bool = False,
    ) -> None:
        self.label, self.log = label, log
        self._before = [] if guarded else [sys.executable, "-I", "-S", "-c", _WITH_PARENT, str(os.getpid())]
        self._command, self._environment = [str(word) for word in command], environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id, or None while not running."""
        return None if self._process is None else self._process.pid

    @property
    def said(self) -> str:
        """All standard output and error so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def start(self, is_ready: Callable[[], bool], *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Run the program in its log's folder, and return when ``is_ready``.

        Raises IcreError with the end of the log if it ends early or is not ready in time; it is not running then.
        """
        with self.log.open("ab") as log:
            self._process = _STARTER.submit(
                subprocess.Popen,
                [*self._before, *self._command],
                cwd=self.log.parent,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # only this process receives Ctrl-C, and ends its programs
            ).result()
        deadline = time.monotonic() + timeout_s
        while not is_ready():
            if (ended := self._has_ended()) or time.monotonic() > deadline:
                code = self.kill()
                what = f"ended with exit code {code}" if ended else f"was not ready after {timeout_s:.0f} s"
                tail = "\n".join(self.said.splitlines()[-_LOG_LINES:])
                raise IcreError(f"{self.label} {what}; its log ends:\n{tail}", hint="see the log above")
            time.sleep(_POLL_S)

    def ask_to_end(self) -> None:
        """Send SIGTERM without waiting. No effect if not running."""
        if self._process is not None and not self._has_ended():
            self._process.terminate()

    def kill(self, *, patience_s: float = 0.0) -> int | None:
        """Wait ``patience_s`` for the program to end, then send SIGKILL to its process group and remaining children.

        Returns the exit code, or None if it was not running.
        """
        if self._process is None:
            return None
        deadline = time.monotonic() + patience_s
        while not self._has_ended() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        os.killpg(self._process.pid, signal.SIGKILL)  # not reaped yet, so the id cannot be reused
        code = self._process.wait()
        self._process = None
        return code

    def _has_ended(self) -> bool:
        assert self._process is not None
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


class Guard:
    """A process that waits until this one ends, and then ends all processes started with ``variable=value``.

    For programs whose children briefly outlive them, like Ray's agents after a killed raylet, and are then
    indistinguishable from others: the guard identifies the family while it is alive. It also removes ``folder``.
    """

    def __init__(self, variable: str, value: str, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _GUARD, variable, value, str(folder)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,  # closes when this process ends, however it ends
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """End the guard without any action."""
        self._process.kill()
        self._process.communicate()


def end_all(variable: str, value: str, folder: Path) -> None:
    """Send SIGKILL to all processes with ``variable=value`` until none appears, then remove ``folder``."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while (pids := processes_with(variable, value)) and time.monotonic() < deadline:
        kill_all(pids)
        time.sleep(_POLL_S)
    shutil.rmtree(folder, ignore_errors=True)


def serve(parser: ArgumentParser, start: Callable[[ExitStack], None]) -> None:
    """Main loop of commands that run programs: ``start`` them, wait for Ctrl-C, end them.

    User errors are printed as in ``icre``, and the process exits.
    """
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)  # also clean up on `kill` and when the terminal closes
    try:
        with ExitStack() as running:
            start(running)
            signal.pause()
    except KeyboardInterrupt:
        pass
    except IcreError as error:
        hint = f"hint: {error.hint}\n" if error.hint else ""
        parser.exit(error.exit_code, f"error: {error.message}\n{hint}")


def free_ports(count: int) -> list[int]:
    """TCP ports that are currently unused on all addresses of this machine."""
    found = list[int]()
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            break
        if is_free(port):
            found.append(port)
    return found


def is_free(port: int) -> bool:
    """Whether a server could listen on ``port`` on all addresses of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ports of closed connections are free
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def check_port(port: int, *, option: str) -> int:
    """``port``, as given with ``option``. Raises UserError if it is invalid or in use."""
    if not 1024 <= port <= 65535:
        raise UserError(f"{option} {port}: not a port for everybody", hint="take one from 1024 to 65535")
    if not is_free(port):
        raise UserError(f"{option} {port}: the port is in use", hint="leave the option out: a free one is found")
    return port


def processes_with(variable: str, value: str) -> list[int]:
    """Ids of this machine's processes started with ``variable=value``, and of their descendants.

    Descendants are included because a process that renames itself may overwrite its environment. Only processes that
    may be inspected are found.
    """
    wanted = f"{variable}={value}".encode()
    parents = {int(entry.name): _parent_of(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    found = {pid for pid in parents if wanted in _environment_of(Path(f"/proc/{pid}"))}
    while started := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= started
    return sorted(found)


def variable_of(pid: int, variable: str) -> str | None:
    """The value of ``variable`` a process was started with; None without the variable or the process."""
    begin = f"{variable}=".encode()
    lines = (line for line in _environment_of(Path(f"/proc/{pid}")) if line.startswith(begin))
    return next((line.removeprefix(begin).decode(errors="replace") for line in lines), None)


def kill_all(pids: Iterable[int]) -> None:
    """Send SIGKILL to each process that is still running."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _parent_of(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])  # names may contain blanks
    except OSError:  # ended
        return None


def _environment_of(process: Path) -> list[bytes]:
    try:
        return (process / "environ").read_bytes().split(b"\0")
    except OSError:  # ended, or owned by another user
        return []
