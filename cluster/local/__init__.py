"""A Ray cluster and an object store on one machine."""
