from .plan import Launched, make_entry
from .request import TraceRequest, trace_request, trace_text

__all__ = [
    "Launched",
    "TraceRequest",
    "make_entry",
    "trace_request",
    "trace_text",
]
