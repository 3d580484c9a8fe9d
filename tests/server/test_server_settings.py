"""configs/serve.yaml as dps-serve reads it."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from policy_servers import observation

from diffpolicy_spec.server import Client, Limits, ServerConfig
from diffpolicy_spec.server.cli import server_of


def settings(*overrides: str) -> dict:
    with initialize_config_module("diffpolicy_spec.configs", version_base="1.3"):
        return OmegaConf.to_container(compose("serve", list(overrides)), resolve=True)


@pytest.fixture(autouse=True)
def no_token_around(monkeypatch):
    monkeypatch.delenv("DPS_TOKEN", raising=False)


def test_the_file_says_what_the_defaults_are():
    config = server_of(settings("warm_up=0")).config
    for one in fields(ServerConfig):
        if one.name not in ("warm_up", "limits"):
            assert getattr(config, one.name) == getattr(ServerConfig(), one.name), one.name
    assert config.limits == Limits()


def test_settings_reach_the_server(tmp_path):
    (tmp_path / "tokens").write_text("arm: a-token-that-is-long\n")
    given = ["port=0", f"token_file={tmp_path}/tokens", "limits.burst=7", "sampler=ddpm100", "history=consecutive"]
    with server_of(settings(*given, "obs_map={object: state}")).start() as server:
        assert server.config.limits.burst == 7
        assert "ddpm" in server.info.sampler
        obs = observation()
        obs["state"] = obs.pop("object")
        with Client(server.url, token="a-token-that-is-long") as client:
            assert client.infer(obs).cost.calls == 100


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("host=0.0.0.0", "host=0.0.0.0 is open to others on the network"),
        ("policy=nothing", "'nothing' is neither an existing path nor a shipped policy"),
        ("limits.burst=0", "limits: burst must be positive"),
        ("limits=3", "limits must be a mapping"),
        ("obs_map={nose: x}", "obs_map names nose, which the policy does not observe"),
        ("obs_map=[x]", "obs_map must map"),
        ("log_level=loud", "log_level must be one of"),
        ("num_threads=0", "num_threads must be"),
        ("device=tpu", "device=tpu"),
        ("token_file=/nowhere/at/all", "No such file"),
        ("token=short", "at least 16 characters"),
    ],
)
def test_wrong_settings_are_told(override, told):
    with pytest.raises((ValueError, OSError), match=told):
        server_of(settings(override))
