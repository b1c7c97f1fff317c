"""One file a data set layout; each turns file names into records."""
