"""`dps-eval`: run one or several samplers of a policy on the same episodes of one or several tasks.

    dps-eval task=lift sampler=speculative num_episodes=20 output=outputs/eval
    dps-eval samplers=[ddpm100,ddim10,asd,speculative] num_episodes=200 num_workers=auto output=outputs/compare
    dps-eval tasks=[lift,can] samplers=[ddpm100,speculative] backend=ray address=auto output=outputs/cluster
"""

from __future__ import annotations

import sys
from typing import Any

from diffpolicy_spec.command import command

__all__ = ["main"]

INTERRUPTED = 130  # what shells give for SIGINT


def _prepare(config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from diffpolicy_spec.eval.settings import prepare

    if config["overwrite"] and _one_of_several():
        raise ValueError("overwrite=true in a sweep (-m) would remove what its other jobs wrote: give overwrite=false")
    return prepare(config), config


def _one_of_several() -> bool:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _run(prepared: tuple[Any, dict[str, Any]]) -> None:
    from diffpolicy_spec.eval.errors import RunError
    from diffpolicy_spec.eval.evaluate import run
    from diffpolicy_spec.eval.store import StoreError

    try:
        run(*prepared)
    except (RunError, StoreError, ConnectionError) as error:
        sys.exit(f"dps-eval: {error}")


def main() -> None:
    """Entry point; the options are those of configs/eval.yaml (`--config-name demo` for the demo)."""
    try:
        command("dps-eval", "eval", "eval", _prepare, _run)
    except KeyboardInterrupt as error:
        said = str(error) or "stopped; run the same command to go on"
        print(f"\ndps-eval: {said}", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
