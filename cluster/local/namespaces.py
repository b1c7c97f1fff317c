"""Network namespaces for the nodes of a local cluster, so that a node can be cut off while its processes go on.

The head stays in the machine's own namespace, with the address of a bridge; every other node has a namespace and a
cable (a veth pair) to that bridge. Needs root and iproute2's ``ip``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from icre.errors import IcreError, UserError

_NAMES = Path("/run/netns")
_PREFIX = "icre"


def why_not() -> str | None:
    """Why namespaces cannot be made here; None if they can."""
    if shutil.which("ip") is None:
        return "there is no `ip` program (Debian's package iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    tried = subprocess.run(["ip", "netns", "add", f"{_PREFIX}-try-{os.getpid()}"], capture_output=True, text=True)
    if tried.returncode == 0:
        _ip("netns", "delete", f"{_PREFIX}-try-{os.getpid()}")
    return tried.stderr.strip() if tried.returncode else None


class Network:
    """A bridge with a /24 of 198.18.0.0/15, which is set aside for tests, for the length of a ``with`` block.

    Names hold this process's id, and those of a process that is gone are removed first. Raises IcreError where
    namespaces cannot be made.
    """

    def __init__(self) -> None:
        self._owner = f"{_PREFIX}{os.getpid()}"
        self._subnet = f"198.{18 + os.getpid() // 256 % 2}.{os.getpid() % 256}"

    def __enter__(self) -> Network:
        if (reason := why_not()) is not None:
            raise IcreError(f"no network namespaces on this machine: {reason}", hint="run as root, with iproute2")
        _remove_left_behind()
        with ExitStack() as undo:
            _ip("link", "add", self._owner, "type", "bridge")
            undo.callback(_remove, self._owner)
            _ip("address", "add", f"{self.address(0)}/24", "dev", self._owner)
            _ip("link", "set", self._owner, "up")
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _remove(self._owner)

    def address(self, number: int) -> str:
        """The IP address of node ``number``; that of 0, the head, is the bridge's."""
        if not 0 <= number < 254:
            raise UserError(f"node {number}: the network has 254 addresses", hint="start a new cluster")
        return f"{self._subnet}.{1 + number}"

    def add(self, number: int) -> tuple[list[str], dict[str, str]]:
        """Make a namespace for node ``number``; what to put before its commands, and into their environment."""
        if number == 0:
            return [], {"GLOO_SOCKET_IFNAME": self._owner}
        name, cable = self._name(number), self._cable(number)
        _ip("netns", "add", name)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", cable, "master", self._owner, "up")
        _ip("-n", name, "address", "add", f"{self.address(number)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", name, "link", "set", device, "up")
        return ["ip", "netns", "exec", name], {"GLOO_SOCKET_IFNAME": "eth0"}

    def cut(self, number: int) -> None:
        """Nothing gets from node ``number`` to the others or back. Raises UserError for the head."""
        if number == 0:
            raise UserError("node 0 has no cable: it is on the bridge itself", hint="cut off the other nodes instead")
        _ip("link", "set", self._cable(number), "down")

    def mend(self, number: int) -> None:
        """Undo :meth:`cut`."""
        _ip("link", "set", self._cable(number), "up")

    def _name(self, number: int) -> str:
        return f"{self._owner}-{number}"

    def _cable(self, number: int) -> str:
        return f"{self._owner}n{number}"


def _remove(owner: str) -> None:
    """The bridge and the namespaces of ``owner``; a cable goes with its namespace."""
    for name in [path.name for path in _NAMES.glob(f"{owner}-*")]:
        _ip("netns", "delete", name)
    if Path("/sys/class/net", owner).exists():
        _ip("link", "delete", owner)


def _remove_left_behind() -> None:
    """What processes that were killed have left."""
    bridges = [path.name for path in Path("/sys/class/net").glob(f"{_PREFIX}[0-9]*") if (path / "bridge").exists()]
    for owner in bridges:
        if not Path("/proc", owner.removeprefix(_PREFIX)).exists():
            _remove(owner)


def _ip(*arguments: str) -> None:
    ran = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if ran.returncode:
        raise IcreError(f"ip {' '.join(arguments)}: {ran.stderr.strip()}", hint="is this a machine without namespaces?")
