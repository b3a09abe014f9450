"""The command line: one verb, one file. torch is imported inside a verb, so that --help is instant."""
