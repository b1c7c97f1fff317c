"""What surrounds the work of a verb: the command line, progress lines and the Ray session."""
