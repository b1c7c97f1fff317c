"""One function over many items, each in its own Ray Data task."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.exceptions
from ray.data.block import BlockAccessor

from icre.errors import IcreError

Item = TypeVar("Item")
Result = TypeVar("Result")


def fan_out(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    cpus: float = 1,
    done: Callable[[Item], None] | None = None,
) -> list[Result]:
    """Results of ``work`` for all items, in item order, run on any node with ``cpus`` free.

    Raises the IcreError that a task raised. ``done`` is called with each item when its result arrives, in any order.
    Items and results pass through this process, so they should be names and numbers, not images.
    """
    if not items:
        return []

    def run(batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        result = work(pickle.loads(batch["item"][0]))
        return {"number": [batch["number"][0]], "result": [pickle.dumps(result)]}

    rows = [{"number": number, "item": pickle.dumps(item)} for number, item in enumerate(items)]
    # Otherwise Ray Data raises its own exception, without the task's.
    ray.data.DataContext.get_current().raise_original_map_exception = True
    tasks = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(run, batch_size=1, num_cpus=cpus)
    found: dict[int, bytes] = {}
    try:
        for block in blocks_of(tasks):
            for row in block.to_pylist():
                found[row["number"]] = row["result"]
                if done is not None:
                    done(items[row["number"]])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, IcreError):
            raise error.cause from error
        raise
    return [pickle.loads(found[number]) for number in range(len(items))]


def blocks_of(rows: ray.data.Dataset) -> Iterator[pa.Table]:
    """The blocks of ``rows`` as soon as each is ready, in any order.

    Ray Data's own iterators over rows and batches, including take_all(), leave a thread behind that starts another Ray
    if the session ends first.
    """
    for bundle in rows.iter_internal_ref_bundles():
        for block in ray.get(list(bundle.block_refs)):
            yield BlockAccessor.for_block(block).to_arrow()


def cpus_for_each(tasks: int) -> int:
    """CPUs per task with which ``tasks`` use the whole cluster; no more than the largest node has."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    cpus = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
    return max(1, min(sum(cpus) // max(1, tasks), max(cpus)))
