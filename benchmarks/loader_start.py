"""Claim: a loader process starts with a fraction of the CPU time and memory that it would take with torch.

    python -m benchmarks.loader_start [--rounds 5]

Ray's processes import the module of the function that they run. New Python processes take turns: one imports the module
of the loaders' function, one that of the feed, where the function would be otherwise, and which imports torch. Prints
medians of CPU seconds and of peak resident memory as Markdown, with the ratio of both, then JSON. Linux.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

SIDES = {"without torch": "pipelines.data.decoding", "with torch": "pipelines.data.feed"}
COST = "import resource; used = resource.getrusage(resource.RUSAGE_SELF)"
"""Peak memory in KiB."""


def main() -> None:
    """Start processes, print what they took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side; the median counts")
    rounds = parser.parse_args().rounds
    costs = [[_cost(module) for module in SIDES.values()] for _ in range(rounds + 1)][1:]  # the first warms up
    seconds, mib = (
        [statistics.median(side[part] for side in sides) for sides in zip(*costs, strict=True)] for part in (0, 1)
    )
    ratios = {"cpu": round(seconds[0] / seconds[1], 2), "memory": round(mib[0] / mib[1], 2)}
    print("| a loader process | CPU s | MiB |\n|---|---:|---:|")
    for name, used, memory in zip(SIDES, seconds, mib, strict=True):
        print(f"| {name} | {used:.2f} | {memory:.0f} |")
    print(f"| ratio | {ratios['cpu']} | {ratios['memory']} |\n")
    print(json.dumps({"benchmark": "loader_start", "cpu_s": seconds, "mib": mib, **ratios}))


def _cost(module: str) -> tuple[float, float]:
    """CPU seconds and peak MiB of a process that imports ``module``."""
    code = f"import {module}; {COST}; print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    seconds, mib = said.split()
    return float(seconds), float(mib)


if __name__ == "__main__":
    main()
