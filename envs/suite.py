"""robosuite, imported so that it changes nothing around it."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from types import ModuleType
from typing import Any

from diffpolicy_spec.envs.rendering import RenderUnavailable
from diffpolicy_spec.optional import require

__all__ = ["load_robosuite"]


def load_robosuite() -> ModuleType | Any:
    """The module robosuite.

    It advises on optional parts when imported and notes every controller file it reads: both are logged below errors,
    and only warnings are kept. It also sets MUJOCO_GL=egl, with which importing MuJoCo fails in a child process where
    there is no libEGL: that is undone.

    Raises:
        ImportError: not installed.
        RenderUnavailable: MUJOCO_GL names a library that MuJoCo cannot load.
    """
    if sys.modules.get("robosuite") is not None:
        return sys.modules["robosuite"]
    chosen = os.environ.get("MUJOCO_GL")
    try:
        require("mujoco", extra="sim")
    except Exception as error:
        if chosen is None or importlib.util.find_spec("mujoco") is None:
            raise
        raise RenderUnavailable(
            f"MuJoCo cannot be imported with MUJOCO_GL={chosen} ({error}): unset it, or install the library it names"
        ) from error
    logger = logging.getLogger("robosuite_logs")

    def errors_only(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger.addFilter(errors_only)  # a level would not last: the import sets its own
    try:
        module = require("robosuite", extra="sim")
    finally:
        logger.removeFilter(errors_only)
        if chosen is None:
            os.environ.pop("MUJOCO_GL", None)
        else:
            os.environ["MUJOCO_GL"] = chosen
    logger.setLevel(logging.WARNING)
    return module
