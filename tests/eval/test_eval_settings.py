"""Every configuration composes and instantiates; what is wrong is refused by name before anything runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tiny_policy import tiny_policy

from diffpolicy_spec.eval.settings import known_samplers, prepare, resolve_samplers
from diffpolicy_spec.runtime import RuntimeConfig
from diffpolicy_spec.samplers import SamplerConfig


def config(*overrides, name="eval"):
    with initialize_config_module("diffpolicy_spec.configs", version_base="1.3"):
        return OmegaConf.to_container(compose(name, overrides=list(overrides)), resolve=True)


def tiny(checkpoint, tmp_path, *overrides):
    """A configuration for the tiny policy; DDIM-10 is the longest chain it has."""
    return config(f"policy={checkpoint}", f"output={tmp_path / 'out'}", "video=false", "plots=false", *overrides)


@pytest.mark.parametrize("name", known_samplers())
def test_every_sampler_composes_and_binds(policy, name):
    (from_group,) = resolve_samplers(config(f"sampler={name}"))
    (from_list,) = resolve_samplers(config(f"samplers=[{name}]"))
    assert from_group == from_list
    assert from_group["name"] == name
    fields = {k: v for k, v in from_group.items() if k not in ("name", "options")}
    options = {k: v for k, v in from_group["options"].items() if v is not None}
    if name == "draft_model":
        with pytest.raises(ValueError, match="no draft network"):
            policy.bind(SamplerConfig(**fields, options=options))
        return
    bound = policy.bind(SamplerConfig(**fields, options=options))
    assert bound.schedule.num_steps == 10


@pytest.mark.parametrize("name", ["eager", "static", "compiled", "graphs", "compiled_graphs"])
def test_every_runtime_composes(name):
    assert RuntimeConfig(**config(f"runtime={name}")["runtime"]).mode == name


def test_the_issue_s_samplers_are_there():
    named = {"ddpm100", "ddim10", "paradigms", "asd", "nearest", "picard", "speculative"}
    named |= {"asd_infinite", "drift", "draft_model", "block", "tree", "auto"}
    assert named <= set(known_samplers())


@pytest.mark.parametrize("name", ["eval", "demo"])
def test_every_run_composes_and_prepares(checkpoint, tmp_path, name):
    cfg = config(f"policy={checkpoint}", f"output={tmp_path / 'out'}", "video=false", name=name)
    settings = prepare(cfg)
    for env in settings.envs:
        env.close()
    assert len(settings.seeds) == cfg["num_episodes"]
    assert settings.seeds[0] == 100000
    assert [s.name for s in settings.samplers] == (cfg["samplers"] or [cfg["sampler"]["name"]])
    assert len(settings.envs) == 1  # honest latency
    assert not (tmp_path / "out").exists()


def test_the_shipped_policys_draft_network_serves_every_sampler_that_wants_one(tmp_path):
    cfg = config("policy=lift", f"output={tmp_path / 'out'}", "samplers=[speculative,draft_model]", "video=false")
    settings = prepare(cfg)
    for env in settings.envs:
        env.close()
    assert [s.bound.uses_draft for s in settings.samplers] == [True, True]


def test_demo_is_what_make_demo_promises():
    cfg = config(name="demo")
    assert cfg["samplers"] == ["ddpm100", "ddim10", "paradigms", "asd", "speculative"]
    assert (cfg["task"]["name"], cfg["policy"], cfg["output"]) == ("lift", "lift", "outputs/demo")
    assert (cfg["num_threads"], cfg["num_envs"]) == (1, 1)


def test_a_sampler_may_be_changed_in_the_list():
    cfg = config("samplers=[ddpm100,{base:speculative,name:wide,options:{window:100}}]")
    first, second = resolve_samplers(cfg)
    (plain,) = resolve_samplers(config())
    assert first["name"] == "ddpm100"
    assert second == {**plain, "name": "wide", "options": {**plain["options"], "window": 100}}


@pytest.mark.parametrize(
    ("samplers", "message"),
    [
        ("[fast]", "no sampler 'fast'; known samplers: asd, asd_infinite"),
        ("[]", "samplers must be a list"),
        ("asd", "samplers must be a list"),
        ("[asd,asd]", "two samplers are named asd"),
        ("[{base:asd,name:x,windw:3}]", r"unknown \['windw'\]"),
        ("[3]", "a sampler is a name or a mapping with base or method, got 3"),
        ("[{base:asd,name:x,options:[8]}]", r"options must be a mapping, got \[8\]"),
        ("[{method:ddpm}]", r"missing \['name'\]"),
        ("[{base:asd,name:../x}]", "a sampler's name becomes a folder"),
    ],
)
def test_wrong_samplers(samplers, message):
    with pytest.raises(ValueError, match=message):
        resolve_samplers(config(f"samplers={samplers}"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy=no_such_policy", "no_such_policy"),
        ("num_episodes=0", "num_episodes must be an integer of at least 1, got 0"),
        ("num_envs=1.5", "num_envs must be an integer of at least 1, got 1.5"),
        ("max_steps=0", "max_steps must be"),
        ("task.name=juggle", "unknown task 'juggle'; known tasks:"),
        ("device=abacus", "abacus"),
        ("samplers=[{base:speculative,name:x,options:{windw:3}}]", "windw"),
        ("samplers=[{base:ddpm100,name:x,method:magic}]", "magic"),
        ("samplers=[{base:asd,name:x,options:{window:0}}]", "sampler 'x': window must be at least 1, got 0"),
        ("samplers=[{base:asd,name:x,options:{window:wide}}]", "sampler 'x': "),
        ("samplers=[{base:asd,name:x,options:{window:[4,4]}}]", "sampler 'x': window must .* each of 10 steps"),
        ("samplers=[{base:asd,name:x,eta:0}]", "sampler 'x': .*deterministic steps"),
        ("samplers=[{base:paradigms,name:x,options:{tolerance:-1}}]", "sampler 'x': tolerance must not be negative"),
        ("samplers=[{base:picard,name:x,options:{memory:-1}}]", "sampler 'x': Picard needs memory >= 0"),
        ("samplers=[{base:ddpm100,name:x,num_inference_steps:0}]", "sampler 'x': num_inference_steps must be"),
    ],
)
def test_wrong_values(checkpoint, tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        prepare(tiny(checkpoint, tmp_path, override))
    assert not (tmp_path / "out").exists()


def test_a_policy_of_another_task_is_refused(tmp_path):
    strange = tiny_policy(obs_dims={"object": 14, "robot0_eef_pos": 3})
    strange.save(tmp_path / "policy")
    with pytest.raises(ValueError, match=r"the policy observes object \(14\); task 'lift' gives object \(10\), robot0"):
        prepare(tiny(tmp_path / "policy", tmp_path))
    tiny_policy(action_dim=20).save(tmp_path / "two_arms")
    with pytest.raises(ValueError, match=r"actions have 20 dimensions, task 'lift' takes 10"):
        prepare(tiny(tmp_path / "two_arms", tmp_path))
    assert not (tmp_path / "out").exists()


def test_earlier_results_are_not_overwritten(checkpoint, tmp_path):
    log = tmp_path / "out" / "eval_log.json"
    log.parent.mkdir()
    log.write_text("earlier")
    with pytest.raises(ValueError, match=r"earlier run: give another output=\S+ or overwrite=true"):
        prepare(tiny(checkpoint, tmp_path))
    with pytest.raises(ValueError, match="no_such_policy"):
        prepare(tiny(checkpoint, tmp_path, "overwrite=true", "policy=no_such_policy"))
    assert log.read_text() == "earlier"


def test_output_that_is_a_file(checkpoint, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        prepare(tiny(checkpoint, tmp_path))


def dps_eval(*overrides, **environment):
    command = [sys.executable, "-m", "diffpolicy_spec.eval.cli", *overrides]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **environment}
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task=juggle", "lift"),  # hydra lists the options of a group
        ("sampler=fast", "speculative"),
        ("samplers=[fast]", "dps-eval: there is no sampler 'fast'; known samplers: asd"),
        ("policy=no_such_policy", "dps-eval: 'no_such_policy' is neither an existing path nor a shipped policy"),
        ("num_epsiodes=3", "num_epsiodes"),
    ],
)
def test_command_line_names_the_mistake(tmp_path, override, message):
    done = dps_eval(f"output={tmp_path / 'out'}", override)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_offscreen_opengl_there_is_a_notice_and_no_video(checkpoint, tmp_path):
    """In a process of its own: MUJOCO_GL is read when MuJoCo is imported. "disable" makes MuJoCo offer no context."""
    overrides = [f"policy={checkpoint}", f"output={tmp_path / 'out'}", "num_episodes=1", "max_steps=2", "plots=false"]
    done = dps_eval(*overrides, MUJOCO_GL="disable")
    assert done.returncode == 0, done.stderr
    assert "no videos: there is no offscreen OpenGL here (tried MUJOCO_GL=disable)" in done.stdout
    assert (tmp_path / "out" / "eval_log.json").is_file()
    assert not Path(tmp_path / "out" / "speculative" / "video.mp4").exists()
