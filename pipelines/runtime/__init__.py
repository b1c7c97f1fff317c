"""Runtime shared by all verbs: the command line, progress lines and the Ray session."""
