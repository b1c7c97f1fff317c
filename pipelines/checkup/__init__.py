"""What `icre doctor` looks at: this machine, its storage, a cluster and each of its nodes."""
