"""How rounds and networks are run: fixed shapes, compiled or captured, on one device or several."""

from .capture import Report
from .config import RuntimeConfig
from .session import Session

__all__ = ["Report", "RuntimeConfig", "Session"]
