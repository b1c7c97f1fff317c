"""Checks of one machine, local or a cluster node: versions, GPU, memory, disks, limits."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import torch

from pipelines.checks.result import CheckResult, judge

GIB = 2**30
OLDEST_PYTHON = (3, 11)
OPEN_FILES = 65_536
RAY_PORTS = {"GCS": 6379, "dashboard": 8265, "client server": 10001}
_ROOT = Path(__file__).resolve().parents[2]


def check_machine(pins: Mapping[str, str], *, gpus: float = 0) -> list[CheckResult]:
    """All checks that need no network. ``gpus``: number of GPUs that must be usable."""
    cache = Path(os.environ.get("ICRE_CACHE") or tempfile.gettempdir())
    return [
        python_version(sys.version_info[:3]),
        *packages(pins),
        gpu(gpus),
        shared_memory(Path("/dev/shm"), memory_bytes()),
        *(disk(name, place) for name, place in {"temporary": Path(tempfile.gettempdir()), "ICRE_CACHE": cache}.items()),
        open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    ]


def read_pins(path: Path = _ROOT / "constraints.txt") -> dict[str, str]:
    """The versions of constraints.txt by normalised name; empty if there is no such file next to the code."""
    if not path.is_file():
        return {}
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return {_normalised(name): version for name, _, version in (line.partition("==") for line in lines) if version}


def python_version(version: tuple[int, ...]) -> CheckResult:
    """Check that Python is new enough."""
    shown, oldest = (".".join(map(str, numbers)) for numbers in (version, OLDEST_PYTHON))
    return judge(
        "python", shown, rule=f"{oldest} or newer", fix=f"install Python {oldest}", failed=version < OLDEST_PYTHON
    )


def packages(pins: Mapping[str, str]) -> Iterator[CheckResult]:
    """Compare the project's direct dependencies with constraints.txt; a single line if all match."""
    names = _direct_dependencies()
    rule = "the versions of constraints.txt, which the tests ran with"
    fix = "pip install -c constraints.txt -e ."
    if not pins:
        yield CheckResult("packages", "warning", "no constraints.txt beside the code", rule, "run from the repository")
        return
    found = {name: _installed(name) for name in names if name in pins}
    missing = [name for name, version in found.items() if version is None]
    other = [
        f"{name} {version}, pinned {pins[name]}" for name, version in found.items() if version not in (None, pins[name])
    ]
    shown = "; ".join([*(f"{name} is missing" for name in missing), *other])
    yield judge(
        "packages", shown or f"{len(found)} as pinned", rule=rule, fix=fix, failed=bool(missing), warning=bool(other)
    )


def gpu(wanted: float) -> CheckResult:
    """Check that torch can use the machine's GPUs and the required number."""
    devices = [path.name for path in Path("/dev").glob("nvidia[0-9]*")]
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    shown = f"torch {torch.__version__}, {usable} usable" + (f" of {len(devices)}" if devices else "")
    if usable:
        shown += f": {torch.cuda.get_device_name(0)}"
    return judge(
        "gpu",
        shown,
        rule=f"torch uses every GPU of the machine, at least {wanted:g}",
        fix="install NVIDIA's driver, and the build of torch for CUDA; in a container, ask for the GPU",
        failed=usable < max(wanted, len(devices)),
    )


def shared_memory(place: Path, memory: int) -> CheckResult:
    """Check the space for Ray's object store, 30 % of the memory."""
    size = shutil.disk_usage(place).total if place.is_dir() else 0
    return judge(
        "shared memory",
        f"{place} {_gib(size)}, memory {_gib(memory)}",
        rule="30 % of the memory, for Ray's object store",
        fix="Docker: --shm-size; Kubernetes: an emptyDir of medium Memory at /dev/shm; else: mount -o remount,size=",
        failed=size < min(GIB, 0.3 * memory),
        warning=size < 0.3 * memory,
    )


def disk(name: str, place: Path) -> CheckResult:
    """Check free space. Ray stores no more objects on a disk that is 95 % full."""
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    usage = shutil.disk_usage(there)
    free = usage.free / max(usage.total, 1)
    return judge(
        f"disk: {name}",
        f"{place} {_gib(usage.free)} free, {free:.0%}",
        rule="20 GiB and 10 % free; with 5 % Ray stops taking objects",
        fix="free some space, or name another place: TMPDIR, ICRE_CACHE, `ray start --temp-dir`",
        failed=usage.free < GIB or free <= 0.05,
        warning=usage.free < 20 * GIB or free < 0.10,
    )


def open_files(limit: int) -> CheckResult:
    """Check ``ulimit -n``: each of Ray's connections is an open file."""
    low = limit != resource.RLIM_INFINITY
    return judge(
        "open files",
        str(limit) if low else "unlimited",
        rule=f"ulimit -n {OPEN_FILES}, for clusters of more than a few nodes",
        fix=f"ulimit -n {OPEN_FILES} before `ray start`, or LimitNOFILE= of its service",
        failed=low and limit < 1024,
        warning=low and limit < OPEN_FILES,
    )


def free_ports(ports: Mapping[str, int] = RAY_PORTS) -> CheckResult:
    """Check that the ports of ``ray start --head`` are free on this machine."""
    taken = [f"{port} ({name})" for name, port in ports.items() if _listens(port)]
    return judge(
        "ports",
        f"in use: {', '.join(taken)}" if taken else "free",
        rule=f"{', '.join(map(str, ports.values()))} are free for `ray start --head`",
        fix="name a running cluster with --address, or give `ray start` other ports",
        failed=False,
        warning=bool(taken),
    )


def memory_bytes() -> int:
    """Memory of the machine or of the container, whichever is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [physical]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(path).read_text().strip() if Path(path).is_file() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits)


def name_of_this_machine() -> str:
    """The machine's name as its users know it."""
    return platform.node() or socket.gethostname()


def _direct_dependencies() -> list[str]:
    try:
        required = metadata.requires("icre") or []
    except metadata.PackageNotFoundError:  # the code was uploaded with a job; nodes provide its dependencies
        required = ["torch", "ray", "pyarrow", "s3fs", "numpy", "pillow", "simplejpeg", "pydantic", "safetensors"]
    return [_normalised(re.split(r"[\s\[<>=!~;]", text, maxsplit=1)[0]) for text in required if "extra ==" not in text]


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
