"""`dps-eval`: run one or several samplers of a policy on the same episodes of a task.

    dps-eval task=lift policy=lift sampler=speculative num_episodes=20 output=outputs/eval
    dps-eval samplers=[ddpm100,ddim10,paradigms,asd,speculative] output=outputs/compare
"""

from __future__ import annotations

from typing import Any

from diffpolicy_spec.command import command

__all__ = ["main"]


def _prepare(config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from diffpolicy_spec.eval.settings import prepare

    return prepare(config), config


def _run(prepared: tuple[Any, dict[str, Any]]) -> None:
    from diffpolicy_spec.eval.evaluate import run

    run(*prepared)


def main() -> None:
    """Entry point; the options are those of configs/eval.yaml (`--config-name demo` for the demo)."""
    command("dps-eval", "eval", "eval", _prepare, _run)


if __name__ == "__main__":
    main()
