"""From a dense checkpoint that one trusts to a sparse model that computes the same, and can then learn to do better."""

from sortyard.interop.upcycling.convert import Upcycled, upcycle, upcycle_with_report
from sortyard.interop.upcycling.options import UpcyclingOptions
from sortyard.interop.upcycling.report import UpcyclingReport

__all__ = ["Upcycled", "UpcyclingOptions", "UpcyclingReport", "upcycle", "upcycle_with_report"]
