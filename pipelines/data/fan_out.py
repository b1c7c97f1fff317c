"""One function over many items, each in a Ray Data task of its own."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import ray
import ray.data
import ray.exceptions

from icre.errors import IcreError

Item = TypeVar("Item")
Result = TypeVar("Result")


def fan_out(work: Callable[[Item], Result], items: Sequence[Item], *, cpus: float = 1) -> list[Result]:
    """``work`` of every item, in their order, on any node with ``cpus`` free. Raises the IcreError that a task raised.

    Items and results pass through this process, so they should be names and numbers, not images.
    """
    if not items:
        return []

    def run(batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        result = work(pickle.loads(batch["item"][0]))
        return {"number": [batch["number"][0]], "result": [pickle.dumps(result)]}

    rows = [{"number": number, "item": pickle.dumps(item)} for number, item in enumerate(items)]
    # Otherwise Ray Data raises an exception of its own that no longer knows the one of the task.
    ray.data.DataContext.get_current().raise_original_map_exception = True
    tasks = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(run, batch_size=1, num_cpus=cpus)
    try:
        # take_all() would leave a thread behind, which starts another Ray when the session ends before it does.
        blocks = ray.get(tasks.to_arrow_refs())
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, IcreError):
            raise error.cause from error
        raise
    found = {row["number"]: row["result"] for block in blocks for row in block.to_pylist()}
    return [pickle.loads(found[number]) for number in range(len(items))]


def cpus_for_each(tasks: int) -> int:
    """CPUs for each of ``tasks`` so that together they use the whole cluster; no more than the largest node has."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    cpus = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
    return max(1, min(sum(cpus) // max(1, tasks), max(cpus)))
