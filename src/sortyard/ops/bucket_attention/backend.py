"""Which implementation a call uses."""

from typing import Literal

Backend = Literal["reference", "cpu"]


def choose_backend(backend: str | None = None) -> Backend:
    """The implementation that a call uses: "cpu" (plain torch on any device) unless another is asked for.

    Args:
        backend: "reference" (dense from a literal relation, slow on purpose), "cpu", or None to choose.

    Returns:
        The backend's name.

    Raises:
        ValueError: an unknown backend.
    """
    if backend is None or backend == "cpu":
        return "cpu"
    if backend == "reference":
        return "reference"
    raise ValueError(f"backend is {backend!r}; choose 'reference' or 'cpu', or leave it out")
