"""dps-serve: a policy behind a websocket.

    dps-serve policy=outputs/train/lift/policy
    DPS_TOKEN=... dps-serve policy=lift host=0.0.0.0 tls_cert=cert.pem tls_key=key.pem device=cuda
    dps-serve policy=theirs.ckpt 'obs_map={obs: [observation/state, observation/gripper]}' sampler=ddpm100

Settings and their defaults: configs/serve.yaml. SIGTERM and SIGINT drain, SIGHUP looks for a new checkpoint.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from diffpolicy_spec.command import command
from diffpolicy_spec.server.auth import is_loopback, read_tokens
from diffpolicy_spec.server.config import Limits, ServerConfig

__all__ = ["main", "server_of"]

_LOG = logging.getLogger("diffpolicy_spec.server")
_LEVELS = ("debug", "info", "warning", "error")


def server_of(cfg: Mapping[str, Any]) -> Any:
    """The server that settings describe, not started; plain data with the keys of configs/serve.yaml.

    Raises:
        ValueError, OSError, ImportError: what is wrong and what there is instead.
    """
    limits = cfg["limits"]
    if not isinstance(limits, Mapping):
        raise ValueError(f"limits must be a mapping, got {limits!r}")
    if not isinstance(cfg["obs_map"] or {}, Mapping):
        raise ValueError(f"obs_map must map the policy's observations to the client's keys, got {cfg['obs_map']!r}")
    if isinstance(cfg["num_threads"], bool) or not isinstance(cfg["num_threads"], int) or cfg["num_threads"] < 1:
        raise ValueError(f"num_threads must be a whole number of at least 1, got {cfg['num_threads']!r}")
    if cfg["log_level"] not in _LEVELS:
        raise ValueError(f"log_level must be one of {', '.join(_LEVELS)}, got {cfg['log_level']!r}")
    taken = {one.name for one in fields(ServerConfig)} - {"tokens", "limits", "obs_map"}
    config = ServerConfig(
        **{name: cfg[name] for name in taken},
        tokens=read_tokens(cfg["token"], cfg["token_file"]),
        obs_map=cfg["obs_map"] or {},
        limits=Limits(**limits),
    )
    # Loaded when the settings are known to be right.
    from diffpolicy_spec.device import parse_device
    from diffpolicy_spec.samplers import SamplerConfig
    from diffpolicy_spec.server.app import PolicyServer

    chosen = cfg["sampler"]
    options = {key: value for key, value in (chosen.get("options") or {}).items() if value is not None}
    sampler = SamplerConfig(chosen["method"], chosen.get("num_inference_steps"), chosen.get("eta"), options)
    return PolicyServer(
        cfg["policy"], config, sampler, device=str(parse_device(cfg["device"])), weights=str(cfg["weights"]),
        num_threads=cfg["num_threads"],
    )  # fmt: skip


def _prepare(cfg: dict[str, Any]) -> Any:
    server = server_of(cfg)
    logging.basicConfig(level=cfg["log_level"].upper(), format="%(asctime)s %(levelname)s %(message)s")
    return server


def _run(server: Any) -> None:
    config = server.config
    if not is_loopback(config.host) and config.tls_cert is None:
        _LOG.warning("without TLS, tokens and observations can be read on the way")
    try:
        server.run(ready=_ready)
    except OSError as error:
        sys.exit(f"dps-serve: {error}")


def _ready(server: Any) -> None:
    print(f"dps-serve: {server.url} serves {server.info.policy} ({server.info.sampler})", flush=True)


def main() -> None:
    """Entry point; the options are those of configs/serve.yaml."""
    command("dps-serve", "serve", "server", _prepare, _run)


if __name__ == "__main__":
    main()
