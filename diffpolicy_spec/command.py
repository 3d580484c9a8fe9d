"""What all commands do: settings from hydra; what the user got wrong in one line, anything else with its traceback."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

from diffpolicy_spec.optional import require

__all__ = ["command"]


def command(
    program: str,
    config_name: str,
    extra: str,
    body: Callable[[dict[str, Any]], Any],
    then: Callable[[Any], object] | None = None,
) -> None:
    """Run a console script on configs/<config_name>.yaml and the `key=value` arguments of the process.

    Args:
        program: its name, for messages.
        extra: the extra that brings what it needs.
        body: gets the resolved settings as plain data. ValueError, OSError and ImportError end the program with their
            message alone: ours say what to do, and hydra would bury them under its own advice.
        then: gets the body's result; its errors keep their traceback.
    """
    hydra = require("hydra", extra=extra, needed_by=program)
    omegaconf = require("omegaconf", extra=extra, needed_by=program)

    def run(cfg: Any) -> None:
        try:
            result = body(omegaconf.OmegaConf.to_container(cfg, resolve=True))
        except (ValueError, OSError, ImportError) as error:
            sys.exit(f"{program}: {error}")
        if then is not None:
            then(result)

    sys.argv[1:] = [_quoted(argument) for argument in sys.argv[1:]]
    hydra.main(version_base="1.3", config_path="pkg://diffpolicy_spec.configs", config_name=config_name)(run)()


def _quoted(argument: str) -> str:
    """key=value for hydra, which takes a "=" in a value only in quotes; diffusion_policy's checkpoints have it."""
    name, _, value = argument.partition("=")
    plain = re.fullmatch(r"[^'\"\[\]{}(),$\\]*=[^'\"\[\]{}(),$\\]*", value)
    return f'{name}="{value}"' if plain and not name.startswith("-") else argument
