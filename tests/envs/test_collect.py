"""dps-collect: the same file whatever the workers, however often it is killed; refusals."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from diffpolicy_spec.envs.collect import CollectConfig, CollectError, collect
from diffpolicy_spec.envs.experts import UnknownExpertError
from diffpolicy_spec.envs.recording import load_episode
from diffpolicy_spec.envs.tasks import UnknownTaskError

COMMAND = [sys.executable, "-m", "diffpolicy_spec.envs.collect", "task=lift", "num_demos=6"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    output = tmp_path_factory.mktemp("reference") / "lift.hdf5"
    return collect(CollectConfig("lift", 6, output), progress=False)


def assert_same(a: Path, b: Path) -> None:
    with h5py.File(a) as left, h5py.File(b) as right:
        names = []
        left.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        assert names
        for name in names:
            np.testing.assert_array_equal(left[name][()], right[name][()], err_msg=name)
        for name in ("data", *(f"data/{demo}" for demo in left["data"])):
            assert dict(left[name].attrs) == dict(right[name].attrs)
            assert set(left[name]) == set(right[name])


def test_the_file_holds_what_was_asked_for(reference):
    assert (reference.demos, len(reference.lengths)) == (6, 6)
    assert [path.name for path in reference.output.parent.iterdir()] == ["lift.hdf5"]
    with h5py.File(reference.output) as file:
        assert file["data"].attrs["total"] == sum(reference.lengths)
        seeds = [file[f"data/demo_{i}"].attrs["seed"] for i in range(6)]
        assert len(set(seeds)) == 6
        assert seeds == sorted(seeds)
        demo = file["data/demo_0"]
        n = demo.attrs["num_samples"]
        assert demo["actions"].shape == (n, 7)
        assert demo["states"].shape[0] == demo["rewards"].shape[0] == demo["dones"].shape[0] == n
        assert {key: value.shape for key, value in demo["obs"].items()} == {
            "object": (n, 10), "robot0_eef_pos": (n, 3), "robot0_eef_quat": (n, 4), "robot0_gripper_qpos": (n, 2),
        }  # fmt: skip
        assert demo["dones"][-1] == 1
        env_args = json.loads(file["data"].attrs["env_args"])
        assert (env_args["env_name"], env_args["type"]) == ("Lift", 1)
        arm = env_args["env_kwargs"]["controller_configs"]["body_parts"]["right"]
        assert (arm["type"], arm["input_type"], arm["input_ref_frame"]) == ("OSC_POSE", "absolute", "world")


def test_robosuite_replays_a_demonstration_from_the_file_alone(reference):
    """As robomimic does: build from env_args, load the model and the first state, play the actions."""
    import robosuite

    with h5py.File(reference.output) as file:
        kwargs = json.loads(file["data"].attrs["env_args"])["env_kwargs"]
        demo = file["data/demo_0"]
        xml, states, actions = demo.attrs["model_file"], demo["states"][()], demo["actions"][()]
        wanted = demo["obs/robot0_eef_pos"][()]
    env = robosuite.make("Lift", **kwargs, has_renderer=False, has_offscreen_renderer=False, ignore_done=True)
    env.reset()
    env.reset_from_xml_string(env.edit_model_xml(xml))
    env.sim.reset()
    env.sim.set_state_from_flattened(states[0])
    env.sim.forward()
    for i, action in enumerate(actions):
        obs, *_ = env.step(action)
        if i + 1 < len(wanted):
            # robomimic restores the state, not what the controller took from the reset: near, not equal.
            np.testing.assert_allclose(obs["robot0_eef_pos"], wanted[i + 1], atol=5e-3)
    assert env._check_success()
    env.close()


def test_workers_do_not_change_it(reference, tmp_path):
    output = tmp_path / "two.hdf5"
    summary = collect(CollectConfig("lift", 6, output, num_workers=2), progress=False)
    assert summary.attempts == reference.attempts
    assert_same(reference.output, output)


def test_killed_twice_it_goes_on_where_it_was(reference, tmp_path):
    output, parts = tmp_path / "lift.hdf5", tmp_path / "lift.hdf5.parts"
    command = [*COMMAND, "output=lift.hdf5", "num_workers=1"]
    for wanted in (1, 3):
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 120
            while len(list(parts.glob("*.npz"))) < wanted:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        assert not output.exists()
    before = {path: path.stat().st_mtime_ns for path in sorted(parts.glob("*.npz"))}
    assert len(before) >= 3
    (parts / ".episode_000000004.npz.tmp").write_bytes(b"half an epi")  # what a kill while writing leaves
    for path in before:
        assert load_episode(path).seed == int(path.stem.split("_")[1])

    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "6 demonstrations of 6 episodes" in run.stdout
    assert "6/6" in run.stderr  # the progress bar
    assert_same(reference.output, output)
    # Nothing else is left: no parts, no folders of hydra's.
    assert [path.name for path in tmp_path.iterdir()] == ["lift.hdf5"]

    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode != 0
    assert "lift.hdf5 is there already" in again.stderr
    assert "Traceback" not in again.stderr


def test_failures_are_left_out_and_too_many_end_it(tmp_path):
    # 48 steps: only the quickest episodes are over by then.
    summary = collect(CollectConfig("lift", 1, tmp_path / "quick.hdf5", max_steps=52), progress=False)
    assert summary.attempts > summary.demos == 1
    assert max(summary.lengths) <= 52
    with pytest.raises(CollectError, match="the expert solved 0 of 20 episodes"):
        collect(CollectConfig("lift", 1, tmp_path / "none.hdf5", max_steps=5), progress=False)


def test_parts_of_another_collection_are_not_mixed_in(tmp_path):
    parts = tmp_path / "lift.hdf5.parts"
    parts.mkdir()
    (parts / "collection.json").write_text(json.dumps({"task": "lift", "seed": 9, "max_steps": 200}))
    with pytest.raises(CollectError, match=r"was begun with .*'seed': 9"):
        collect(CollectConfig("lift", 1, tmp_path / "lift.hdf5"), progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_demos": 0}, "num_demos must be a whole number of at least 1, got 0"),
        ({"num_demos": 2.5}, "num_demos"),
        ({"num_workers": 0}, "num_workers"),
        ({"seed": -1}, "seed"),
        ({"max_steps": "many"}, "max_steps"),
        ({"output": Path("lift.zarr")}, r"must end in \.hdf5"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(CollectError, match=message):
        CollectConfig(**{"task": "lift", "num_demos": 1, "output": Path("x.hdf5")} | change)


def test_tasks_without_environment_or_expert_are_named(tmp_path, monkeypatch):
    with pytest.raises(UnknownTaskError, match="known tasks: can, kitchen, lift"):
        collect(CollectConfig("lfit", 1, tmp_path / "x.hdf5"), progress=False)
    monkeypatch.setattr("diffpolicy_spec.envs.experts.base.EXPERTS", {})
    with pytest.raises(UnknownExpertError, match="no scripted expert"):
        collect(CollectConfig("lift", 1, tmp_path / "x.hdf5"), progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["num_demos=none_of_it"], "dps-collect: num_demos must be"), (["task=lfit"], "lift")],
)
def test_the_command_refuses_without_a_traceback(arguments, message, tmp_path):
    run = subprocess.run([*COMMAND[:3], *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert list(tmp_path.iterdir()) == []
