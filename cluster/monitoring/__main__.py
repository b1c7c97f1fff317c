"""Prometheus with ICRE's alerts, and a Pushgateway, for a Ray cluster on this machine, until Ctrl-C.

    python -m cluster.monitoring --ray-folder /tmp/ray

prints both URLs and the matching recipe settings. All ports listen on loopback only.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from cluster.local.programs import serve
from cluster.monitoring.servers import Monitoring

_DISCOVERY = "prom_metrics_service_discovery.json"


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m cluster.monitoring", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--ray-folder", type=Path, default=Path("/tmp/ray"), help="Ray's --temp-dir on the head (default: /tmp/ray)"
    )
    parser.add_argument("--port", type=int, default=9090, help="port of Prometheus (default: 9090; 0: a free one)")
    parser.add_argument(
        "--pushgateway-port", type=int, default=9091, help="port of the Pushgateway (default: 9091; 0: a free one)"
    )
    options = parser.parse_args()

    def start(running: ExitStack) -> None:
        servers = Monitoring(
            options.ray_folder / _DISCOVERY,
            prometheus_port=options.port or None,
            pushgateway_port=options.pushgateway_port or None,
        )
        running.enter_context(servers)
        print(f"# Prometheus: {servers.prometheus}/alerts, /targets, /graph")
        print(f"# in a recipe: telemetry.pushgateway={servers.pushgateway}")
        print("# Grafana: import cluster/monitoring/icre.json")
        print("# ready (ends, with all that was collected, on Ctrl-C)", flush=True)

    serve(parser, start)


if __name__ == "__main__":
    main()
