"""Monitoring of ICRE: Prometheus configuration and alerts, and a Grafana dashboard. See docs/monitoring.md."""
