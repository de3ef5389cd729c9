"""The base of every configuration class."""

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """A frozen group of settings that refuses unknown keys.

    Each part of the library derives its own small class from it and places it beside what it configures;
    `sortyard.recipe` only composes them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
