"""What the verbs do, apart from reading the command line: one module per job; torch is imported inside."""
