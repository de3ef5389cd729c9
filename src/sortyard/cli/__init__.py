"""The command line: one file per verb, torch imported only inside a verb."""
