"""The method on a cluster: one file a verb, and the rooms that verbs share."""
