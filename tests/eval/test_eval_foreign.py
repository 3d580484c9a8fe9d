"""Checkpoints that upstream's own code saved drive the tasks: through the command, by path, as a file or a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tiny_policy import tiny_policy
from upstream_fixtures import fixture

from diffpolicy_spec.envs.tasks import get_task
from diffpolicy_spec.eval.episode_table import read_stores
from diffpolicy_spec.eval.evaluate import evaluate
from diffpolicy_spec.eval.settings import prepare

LOW_DIM = ["object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """Name of a fixture -> path of its checkpoint."""
    folder, known = tmp_path_factory.mktemp("upstream"), {}

    def path(name):
        if name not in known:
            known[name] = fixture(name, folder)[0]
        return known[name]

    return path


def arguments(policy, output, *overrides):
    return [f"policy={policy}", f"output={output}", "num_episodes=1", "max_steps=10", "video=false", "report=false",
            "warmup_calls=0", *overrides]  # fmt: skip


def run_config(*given):
    with initialize_config_module("diffpolicy_spec.configs", version_base="1.3"):
        return OmegaConf.to_container(compose("eval", overrides=arguments(*given)), resolve=True)


def run(*given):
    """The one cell of a run, its episodes, and what was said."""
    results = evaluate(run_config(*given))
    ((key, cell),) = results.cells.items()
    return cell, results.tables[key]


def test_the_command_takes_diffusion_policys_ckpt(upstream, tmp_path):
    policy = upstream("dp_unet_lowdim_global")
    assert policy.is_file()
    command = [sys.executable, "-m", "diffpolicy_spec.eval.cli", *arguments(policy, tmp_path / "out", "task=lift"),
               "num_workers=2"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "note: 'object' of 'lift' is laid out as robosuite up to 1.4 had it" in done.stdout
    results = read_stores([tmp_path / "out" / "store"])
    (cell,), (table,) = results.cells.values(), results.tables.values()
    assert cell.policy == str(policy)
    assert cell.environment == {"object_layout": "1.4"}
    assert (cell.action_repr, cell.exact, len(cell.timesteps)) == ("absolute_rot6d", True, 100)
    assert table.steps.tolist() == [10]
    log = json.loads((tmp_path / "out" / "eval_log.json").read_text())
    assert log["finished"] is True
    assert log["config"]["policy"] == str(policy)


def test_which_weights_is_part_of_the_cell(upstream, tmp_path):
    policy = upstream("dp_unet_lowdim_global")
    fingerprints = set()
    for weights in ("auto", "ema_model", "model"):
        settings = prepare(run_config(policy, tmp_path / "out", "task=lift", f"weights={weights}"))
        settings.worker.close()
        (work,) = settings.works.values()
        fingerprints.add(work.cell.policy_fingerprint)
        assert work.weights == weights
    assert len(fingerprints) == 2
    with pytest.raises(ValueError, match="weights must be"):
        prepare(run_config(policy, tmp_path / "out", "task=lift", "weights=best"))
    settings = prepare(run_config(policy, tmp_path / "out", "task=lift", "object_layout=1.5"))
    settings.worker.close()
    assert not [notice for notice in settings.notices if "object" in notice]
    assert next(iter(settings.works.values())).cell.environment == {"object_layout": "1.5"}
    with pytest.raises(ValueError, match=r"object_layout must be one of auto, 1.5, 1.4, got 1.3"):
        prepare(run_config(policy, tmp_path / "out", "task=lift", "object_layout=1.3"))


@pytest.mark.parametrize(
    ("name", "task", "action_repr"),
    [
        ("dp_unet_lowdim_inpainting", "lift", "delta"),
        ("dp_transformer_lowdim", "lift", "absolute_rot6d"),
        ("dp_unet_no_ema", "pusht_keypoints", "raw"),  # its first action is the next observation's
    ],
)
def test_other_policies_of_diffusion_policy(upstream, tmp_path, name, task, action_repr):
    cell, table = run(upstream(name), tmp_path / "out", f"task={task}")
    assert cell.action_repr == action_repr
    assert table.steps.tolist() == [10]


def test_robomimics_pth_runs_in_the_environment_of_its_data(upstream, tmp_path, capsys):
    cell, table = run(upstream("robomimic_lowdim"), tmp_path / "out", "task=lift")
    assert "note: 'lift' is run as the policy's data were recorded" in capsys.readouterr().out
    assert cell.action_repr == "delta"  # what that environment's controller takes
    assert cell.environment["env_args"]["env_name"] == "Lift"
    assert table.steps.tolist() == [10]
    with pytest.raises(ValueError, match=r"actions are 'raw', task 'lift' takes absolute_rot6d or .*: say what"):
        prepare(run_config(upstream("robomimic_lowdim"), tmp_path / "out", "task=lift", "env_args=null"))
    given = ("task=lift", "env_args=null", "action_repr=delta")
    settings = prepare(run_config(upstream("robomimic_lowdim"), tmp_path / "out", *given))
    settings.worker.close()
    assert next(iter(settings.works.values())).cell.environment is None


def test_lerobots_folder_is_told_what_its_observations_are(upstream, tmp_path):
    policy = upstream("lerobot_state_env")
    assert policy.is_dir()
    given = ("task=lift", "action_repr=delta")
    with pytest.raises(ValueError, match=r"observes observation.state \(7\), observation.environment_state \(10\)"):
        prepare(run_config(policy, tmp_path / "out", *given))
    names = "obs_map={observation.state:[robot0_eef_pos,robot0_eef_quat],observation.environment_state:object}"
    cell, table = run(policy, tmp_path / "out", *given, names)
    assert cell.environment == {
        "observed": {
            "observation.state": ["robot0_eef_pos", "robot0_eef_quat"], "observation.environment_state": ["object"],
        }
    }  # fmt: skip
    assert table.steps.tolist() == [10]


@pytest.mark.parametrize(
    ("name", "overrides", "images"),
    [
        ("dp_unet_image", ["task=pusht"], {"image": [48, 48]}),
        ("dp_unet_image_shared", ["task=lift"], {"agentview_image": [48, 48], "robot0_eye_in_hand_image": [48, 48]}),
        ("robomimic_image", ["task=lift"], {"agentview_image": [40, 40], "robot0_eye_in_hand_image": [40, 40]}),
        (
            "lerobot_images_shared",
            ["task=lift", "action_repr=delta", "obs_map={observation.state:[robot0_joint_pos],"
             "observation.images.wrist:robot0_eye_in_hand_image,observation.images.top:birdview_image}"],
            {"robot0_eye_in_hand_image": [40, 48], "birdview_image": [40, 48]},
        ),
    ],
)  # fmt: skip
def test_image_policies(upstream, draws, tmp_path, name, overrides, images):
    cell, table = run(upstream(name), tmp_path / "out", *overrides)
    assert cell.environment["images"] == images
    assert table.steps.tolist() == [10]


def test_transport_takes_twenty_numbers_of_two_arms(tmp_path):
    policy = tiny_policy(obs_dims=dict(get_task("transport").obs), action_dim=20, task="transport")
    policy.save(tmp_path / "policy")
    settings = prepare(run_config(tmp_path / "policy", tmp_path / "out", "task=transport"))
    (work,) = settings.works.values()
    env = settings.worker.env(work)
    observation, _ = env.reset(seed=0)
    pose = [[*observation[f"robot{i}_eef_pos"], 1, 0, 0, 0, 1, 0, -1] for i in range(2)]
    assert env.action_space.shape == (20,)
    env.step([number for arm in pose for number in arm])
    settings.worker.close()


def test_what_is_exact_is_measured_at_the_policys_own_chain(upstream, tmp_path):
    """A policy that is used with 20 of 100 steps of DDPM: that chain is drawn exactly, and is the reference."""
    given = ("task=lift", "samplers=[ddpm100,ddim10,speculative]")
    tiny_policy(num_inference_steps=20).save(tmp_path / "few")
    for name, steps in ((tmp_path / "few", 20), (upstream("dp_unet_lowdim_global"), 100)):
        settings = prepare(run_config(name, tmp_path / "out", *given))
        settings.worker.close()
        cells = {work.cell.sampler: work.cell for work in settings.works.values()}
        assert {s: (c.exact, c.reference, len(c.timesteps), c.reference_steps) for s, c in cells.items()} == {
            "ddpm100": (True, True, steps, steps), "ddim10": (False, False, 10, steps),
            "speculative": (True, False, steps, steps),
        }  # fmt: skip
