"""A Ray cluster of several nodes and an S3 object store on this machine, until Ctrl-C.

    python -m cluster.local --nodes 3 --cpus 2

prints the environment variables with which ``icre``, ``ray job submit`` and Python find both.
"""

from __future__ import annotations

import argparse
import shlex
from contextlib import ExitStack

from cluster.local.object_store import ObjectStore
from cluster.local.programs import serve
from cluster.local.ray_cluster import LocalCluster


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m cluster.local", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=2, help="Ray nodes, including the head (default: 2)")
    parser.add_argument("--cpus", type=int, default=2, help="logical CPUs of each node (default: 2)")
    parser.add_argument("--port", type=int, help="port of the head (default: a free one)")
    parser.add_argument("--dashboard-port", type=int, help="port of the dashboard and job server (default: free)")
    parser.add_argument("--bucket", default="icre", help="the object store's bucket (default: icre)")
    parser.add_argument("--no-object-store", action="store_true", help="start only Ray")
    options = parser.parse_args()
    serve(parser, lambda running: _start(options, running))


def _start(options: argparse.Namespace, running: ExitStack) -> None:
    """Start everything and print the variables."""
    # The store comes first: until it listens, the cluster could choose its ports.
    store = running.enter_context(ObjectStore(bucket=options.bucket)) if not options.no_object_store else None
    known = store.environment() if store else {}
    cluster = running.enter_context(
        LocalCluster(
            nodes=options.nodes,
            cpus=options.cpus,
            port=options.port,
            dashboard_port=options.dashboard_port,
            environment=known,
        )
    )
    for name, value in (cluster.environment() | known).items():
        print(f"export {name}={shlex.quote(value)}")
    print(f"# dashboard: {cluster.dashboard_url}" + (f"; storage={store.url}" if store else ""))
    print(f"# ready: {options.nodes} nodes (all ends, with its data, on Ctrl-C)", flush=True)


if __name__ == "__main__":
    main()
