"""Layouts of many processes on paper: what each needs, sends and takes."""
