"""Every configuration composes and instantiates; what is wrong is refused by name before anything runs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tiny_policy import tiny_policy

from diffpolicy_spec.eval import policy_env
from diffpolicy_spec.eval.resolve import known_samplers, resolve_policies, resolve_samplers, resolve_tasks
from diffpolicy_spec.eval.settings import prepare
from diffpolicy_spec.eval.store import Store, StoreError
from diffpolicy_spec.runtime import RuntimeConfig
from diffpolicy_spec.samplers import SamplerConfig


def config(*overrides, name="eval"):
    with initialize_config_module("diffpolicy_spec.configs", version_base="1.3"):
        return OmegaConf.to_container(compose(name, overrides=list(overrides)), resolve=True)


def tiny(checkpoint, tmp_path, *overrides):
    """A configuration for the tiny policy; DDIM-10 is the longest chain it has."""
    return config(f"policy={checkpoint}", f"output={tmp_path / 'out'}", "video=false", "report=false", *overrides)


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
    settings.worker.close()
    assert len(settings.seeds) == cfg["num_episodes"]
    assert settings.seeds[0] == 100000
    works = settings.works.values()
    assert [work.cell.sampler for work in works] == (cfg["samplers"] or [cfg["sampler"]["name"]])
    assert [work.label for work in works] == [work.cell.sampler for work in works]
    assert (settings.spread.num_workers, settings.spread.num_envs) == (1, 1)  # honest latency
    assert not (tmp_path / "out").exists()


def test_the_shipped_policys_draft_network_serves_every_sampler_that_wants_one(tmp_path):
    cfg = config("policy=lift", f"output={tmp_path / 'out'}", "samplers=[speculative,draft_model]", "video=false")
    settings = prepare(cfg)
    settings.worker.close()
    policy = settings.worker.policy(next(iter(settings.works.values())))
    assert [policy.bind(work.sampler).uses_draft for work in settings.works.values()] == [True, True]


def test_demo_is_what_make_demo_promises():
    cfg = config(name="demo")
    assert cfg["samplers"] == ["ddpm100", "ddim10", "paradigms", "asd", "speculative"]
    assert (cfg["task"]["name"], cfg["policy"], cfg["output"]) == ("lift", "shipped", "outputs/demo")
    assert resolve_policies(cfg, resolve_tasks(cfg)) == {"lift": "lift"}
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
        ("num_workers=0", r"num_workers must be an integer of at least 1 \(or auto\), got 0"),
        ("num_workers=many", "num_workers must be an integer"),
        ("backend=slurm", "backend must be local or ray, got 'slurm'"),
        ("address=auto", "address=auto is that of a ray cluster: give backend=ray"),
        ("gpus_per_worker=-1", "gpus_per_worker must not be negative"),
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


def test_what_else_an_output_folder_may_hold(checkpoint, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out holds other files \(notes.txt\): give another output"):
        prepare(tiny(checkpoint, tmp_path))
    (out / "eval_log.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no results store: give another output=... or overwrite=true"):
        prepare(tiny(checkpoint, tmp_path))
    with pytest.raises(ValueError, match="no_such_policy"):
        prepare(tiny(checkpoint, tmp_path, "overwrite=true", "policy=no_such_policy"))
    assert (out / "notes.txt").read_text() == "mine"
    (out / "store").mkdir()
    (out / "store" / "store.json").write_text('{"schema": "diffpolicy_spec.eval", "version": 99}')
    with pytest.raises(StoreError, match=r"schema diffpolicy_spec\.eval version 99"):
        prepare(tiny(checkpoint, tmp_path))
    (out / "store" / "store.json").unlink()
    Store.open(out / "store")
    prepare(tiny(checkpoint, tmp_path)).worker.close()


def test_tasks_and_policies(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    assert resolve_tasks(config()) == ("lift",)
    tasks = resolve_tasks(config("tasks=[lift,can]"))
    assert tasks == ("lift", "can")
    given = resolve_policies(config(f"policy={{lift:lift,can:{checkpoint.name}}}"), tasks)
    assert given == {"lift": "lift", "can": str(checkpoint)}
    assert resolve_policies(config("policy=lift"), tasks) == {"lift": "lift", "can": "lift"}
    with pytest.raises(ValueError, match=r"names none for task 'can'"):
        resolve_policies(config("policy={lift:lift}"), tasks)
    with pytest.raises(ValueError, match=r"no policy for task 'tool_hang' comes with the package .*give policy=PATH"):
        resolve_policies(config(), ["tool_hang"])
    for override, message in (
        ("tasks=[lift,lift]", "named twice"), ("tasks=[]", "tasks must be a list"), ("tasks=can", "must be a list"),
        ("tasks=[juggle]", "unknown task 'juggle'; known tasks:"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            resolve_tasks(config(override))


def test_a_policy_on_a_task_of_other_dimensions(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"the policy observes object \(10\); task 'can' gives object \(14\).*give a"):
        prepare(tiny(checkpoint, tmp_path, "tasks=[lift,can]"))
    assert not (tmp_path / "out").exists()


def test_a_task_without_its_simulator_names_the_extra(checkpoint, tmp_path, monkeypatch):
    def missing(*args):
        raise ImportError("No module named 'robosuite'")

    monkeypatch.setattr(policy_env, "make_environment", missing)
    with pytest.raises(ImportError, match=r"task 'lift' needs its simulator .*pip install 'diffpolicy-spec\[sim\]'"):
        prepare(tiny(checkpoint, tmp_path))


def test_cells_hold_what_changes_an_episode(checkpoint, tmp_path):
    def cells(*overrides):
        settings = prepare(tiny(checkpoint, tmp_path, *overrides))
        settings.worker.close()
        return list(settings.works)

    plain = cells()
    same = ("num_workers=2", "num_envs=2", "output=elsewhere", "num_episodes=3", "seed=5", "overwrite=true")
    for override in same:
        assert cells(override) == plain
    different = [cells(o)[0] for o in ("sampler=asd", "max_steps=20", "runtime=static", "sampler.options.window=4")]
    assert len({*plain, *different}) == 5


def test_lockstep_and_workers_exclude_each_other(checkpoint, tmp_path):
    for other in ("num_workers=2", "num_workers=auto", "backend=ray"):
        with pytest.raises(ValueError, match=r"num_envs=2 is one process .*: give one or the other"):
            prepare(tiny(checkpoint, tmp_path, "num_envs=2", other))


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
        ("policy=epoch=0300-score=1.000.ckpt", "dps-eval: 'epoch=0300-score=1.000.ckpt' is neither an existing path"),
        ("num_epsiodes=3", "num_epsiodes"),
        ("policy=lift task=can", "dps-eval: the policy observes object (10); task 'can' gives object (14)"),
    ],
)
def test_command_line_names_the_mistake(tmp_path, override, message):
    done = dps_eval(f"output={tmp_path / 'out'}", *override.split())
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_offscreen_opengl_there_is_a_notice_and_no_video(checkpoint, tmp_path):
    """In a process of its own: MUJOCO_GL is read when MuJoCo is imported. "disable" makes MuJoCo offer no context."""
    overrides = [f"policy={checkpoint}", f"output={tmp_path / 'out'}", "num_episodes=1", "max_steps=2", "report=false"]
    done = dps_eval(*overrides, MUJOCO_GL="disable")
    assert done.returncode == 0, done.stderr
    assert "no videos: there is no offscreen OpenGL here (tried MUJOCO_GL=disable)" in done.stdout
    assert (tmp_path / "out" / "eval_log.json").is_file()
    assert not list((tmp_path / "out").rglob("*.mp4"))


def test_help_is_for_newcomers():
    done = dps_eval("--help")
    assert done.returncode == 0, done.stderr
    for part in ("how often a policy succeeds", "dps-eval -m sampler=ddpm100,asd", "task: can, ", "num_episodes: 20"):
        assert part in done.stdout
    assert "Powered by Hydra" not in done.stdout
