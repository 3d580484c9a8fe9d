"""Files and folders of this field: what they are, and the same in another format."""

from diffpolicy_spec.tools.describe import describe
from diffpolicy_spec.tools.report import Report

__all__ = ["Report", "describe"]
