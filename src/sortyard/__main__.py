"""`python -m sortyard` is `sortyard`."""

from sortyard.cli.main import run

if __name__ == "__main__":
    run()
