"""The network: dual-stream backbone, MPFR, SDCE and head."""
