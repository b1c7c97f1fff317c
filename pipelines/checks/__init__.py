"""The checks of ``icre doctor``: this machine, the storage, and every node of a cluster."""
