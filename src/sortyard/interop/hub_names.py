"""Names of repositories on a hub, checked without asking it."""

from huggingface_hub import utils
from huggingface_hub.errors import HFValidationError


def fault_of(name: str) -> str | None:
    """Say why the hub would refuse a repository's name; None where it would not.

    Args:
        name: NAME, or OWNER/NAME.
    """
    try:
        utils.validate_repo_id(name)  # type: ignore[attr-defined]
    except HFValidationError as error:
        return str(error)
    return None
