"""Who processes which token: selection, and dispatch by sorting."""

from sortyard.ops.expert_dispatch.hierarchy import route
from sortyard.ops.expert_dispatch.routing import Routing
from sortyard.ops.expert_dispatch.sorting import Dispatch, combine, dispatch, sort_copies

__all__ = ["Dispatch", "Routing", "combine", "dispatch", "route", "sort_copies"]
