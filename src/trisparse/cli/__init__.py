"""The command line: one verb per file, nothing heavy imported before a verb runs."""
