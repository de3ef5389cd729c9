"""What a run shows: one offline page, and a model card."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sortyard.reports.inspection import write_inspection
    from sortyard.reports.model_card import write_model_card
    from sortyard.reports.report import write_report

_HOMES = {"write_inspection": "inspection", "write_model_card": "model_card", "write_report": "report"}
__all__ = ["write_inspection", "write_model_card", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"sortyard.reports.{_HOMES[name]}"), name)
