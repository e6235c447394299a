"""The command line: one thin file per verb. Each parses, calls and prints."""
