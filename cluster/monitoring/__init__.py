"""What to watch of ICRE: Prometheus' configuration and alerts, Grafana's dashboard. See docs/monitoring.md."""
