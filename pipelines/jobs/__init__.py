"""Jobs on a cluster: what is checked before one is submitted, and how its end is waited for."""
