"""Benchmarks: speed, memory and fidelity, each one command that writes one JSON file and one page."""
