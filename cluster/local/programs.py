"""Programs that run beside this one: waited for until they are ready, and gone when this one is, however it ended."""

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
# Below the range from which Linux takes the ports of outgoing connections: a restart finds its ports free.
_PORTS = range(20_000, 32_000)
# Linux takes the *thread* that started a program for its parent. This one lives as long as the process, others may not.
_STARTER = ThreadPoolExecutor(1, thread_name_prefix="starter-of-programs")
# Asks Linux for SIGKILL when the parent is gone, then becomes the program. Not `preexec_fn`, which forks a process that
# may have threads. PR_SET_PDEATHSIG is 1; the parent may have gone before it was asked for.
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
    """One program with a log. It dies with this process, on Linux also when that is killed by SIGKILL.

    ``label`` names it in errors; ``guarded``: a :class:`Guard` sees to it that it dies.
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
        """Its process id, None while it is down."""
        return None if self._process is None else self._process.pid

    @property
    def said(self) -> str:
        """All of its standard output and error so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def start(self, is_ready: Callable[[], bool], *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Run it, in the folder of its log, and return when ``is_ready``.

        Raises IcreError with the end of its log if it ends early or is not ready in time; it is not running then.
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
                start_new_session=True,  # Ctrl-C is for this process, which then ends its programs
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
        """SIGTERM, without waiting. No effect if it is down."""
        if self._process is not None and not self._has_ended():
            self._process.terminate()

    def kill(self, *, patience_s: float = 0.0) -> int | None:
        """Let it end by itself for ``patience_s``, then SIGKILL for its process group, and so for what it left behind.

        Returns its exit code, None if it was down.
        """
        if self._process is None:
            return None
        deadline = time.monotonic() + patience_s
        while not self._has_ended() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        os.killpg(self._process.pid, signal.SIGKILL)  # not waited for yet, so its id is not a stranger's
        code = self._process.wait()
        self._process = None
        return code

    def _has_ended(self) -> bool:
        assert self._process is not None
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


class Guard:
    """A process that waits for this one's end, and then ends what was started with ``variable=value``.

    For a program whose children outlive it for a while, as Ray's agents do a raylet that was killed, and are not told
    from others' then: the guard finds the whole family alive. It also removes ``folder``.
    """

    def __init__(self, variable: str, value: str, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _GUARD, variable, value, str(folder)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,  # its other end closes with this process, whatever ended that
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """End it, with nothing done."""
        self._process.kill()
        self._process.communicate()


def end_all(variable: str, value: str, folder: Path) -> None:
    """SIGKILL for all processes with ``variable=value`` until none comes up any more, then remove ``folder``."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while (pids := processes_with(variable, value)) and time.monotonic() < deadline:
        kill_all(pids)
        time.sleep(_POLL_S)
    shutil.rmtree(folder, ignore_errors=True)


def serve(parser: ArgumentParser, start: Callable[[ExitStack], None]) -> None:
    """What a command does that runs programs: ``start`` them, wait for Ctrl-C, and end them.

    Errors for users are printed as ``icre`` prints them, and the process exits.
    """
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)  # clean up on `kill` and when the terminal closes, too
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
    """TCP ports on which nobody listens now, on no address of this machine."""
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
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ports of connections that are over are free
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def check_port(port: int, *, option: str) -> int:
    """``port``, which ``option`` asks for. Raises UserError if it is none or somebody listens there."""
    if not 1024 <= port <= 65535:
        raise UserError(f"{option} {port}: not a port for everybody", hint="take one from 1024 to 65535")
    if not is_free(port):
        raise UserError(f"{option} {port}: the port is in use", hint="leave the option out: a free one is found")
    return port


def processes_with(variable: str, value: str) -> list[int]:
    """Ids of this machine's processes that were started with ``variable=value``, and of what they have started.

    Those too because a process that gives itself another name may write it over its variables. Only processes that may
    be looked at are found.
    """
    wanted = f"{variable}={value}".encode()
    parents = {int(entry.name): _parent_of(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    found = {pid for pid in parents if wanted in _environment_of(Path(f"/proc/{pid}"))}
    while started := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= started
    return sorted(found)


def variable_of(pid: int, variable: str) -> str | None:
    """The value of ``variable`` that a process was started with; None without one, or without the process."""
    begin = f"{variable}=".encode()
    lines = (line for line in _environment_of(Path(f"/proc/{pid}")) if line.startswith(begin))
    return next((line.removeprefix(begin).decode(errors="replace") for line in lines), None)


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL for each that still runs."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _parent_of(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])  # a name may hold blanks
    except OSError:  # over
        return None


def _environment_of(process: Path) -> list[bytes]:
    try:
        return (process / "environ").read_bytes().split(b"\0")
    except OSError:  # over, or somebody else's
        return []
