"""The method on a cluster: one module per verb, and the packages that verbs share."""
