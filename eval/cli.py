"""`dps-eval`: run one or several samplers of a policy on the same episodes of a task.

    dps-eval task=lift policy=lift sampler=speculative num_episodes=20 output=outputs/eval
    dps-eval samplers=[ddpm100,ddim10,paradigms,asd,speculative] output=outputs/compare
"""

from __future__ import annotations

from typing import Any

from diffpolicy_spec.optional import require

__all__ = ["main"]


def _evaluate(cfg: Any) -> None:
    from omegaconf import OmegaConf

    from diffpolicy_spec.eval.evaluate import run
    from diffpolicy_spec.eval.settings import prepare

    config = OmegaConf.to_container(cfg, resolve=True)
    try:
        settings = prepare(config)
    except (ValueError, OSError, ImportError) as error:
        # What the user gave is wrong: the message says all there is to say, a traceback would bury it.
        raise SystemExit(f"dps-eval: {error}") from None
    run(settings, config)


def main() -> None:
    """Entry point; the options are those of configs/eval.yaml (`--config-name demo` for the demo)."""
    hydra = require("hydra", extra="eval", needed_by="dps-eval")
    hydra.main(version_base="1.3", config_path="pkg://diffpolicy_spec.configs", config_name="eval")(_evaluate)()


if __name__ == "__main__":
    main()
