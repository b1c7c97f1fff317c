"""Run folders: access, networks, provenance and leases."""
