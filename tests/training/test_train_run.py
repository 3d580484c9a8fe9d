"""Whole runs of dps-train on a tiny dataset: what they leave, and going on after a kill at any time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_dataset import write_dataset

from diffpolicy_spec.checkpoints import CheckpointError, load_policy
from diffpolicy_spec.configs import __file__ as configs_file
from diffpolicy_spec.schedule import ScheduleError
from diffpolicy_spec.training import TrainingError
from diffpolicy_spec.training.cli import run

TINY = [
    "model.unet.down_dims=[8,16]",
    "model.unet.diffusion_step_embed_dim=8",
    "batch_size=16",
    "lr=0.003",
    "warmup_steps=5",
    "log_every=10",
    "val_every=50",
    "snapshot_every=100",
    "num_threads=1",
]


def settings(*overrides):
    hydra, omegaconf = pytest.importorskip("hydra"), pytest.importorskip("omegaconf")
    with hydra.initialize_config_dir(str(Path(configs_file).parent), version_base="1.3"):
        cfg = hydra.compose("train", [*TINY, *overrides])
    return omegaconf.OmegaConf.to_container(cfg, resolve=True)


def command(*overrides):
    return [sys.executable, "-m", "diffpolicy_spec.training.cli", *TINY, *overrides]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "lift.hdf5")


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "finished"
    run(settings(f"dataset={dataset}", f"output={output}", "max_steps=150"))
    return output


def weights(output):
    return load_file(output / "policy" / "model.safetensors")


def test_what_a_run_leaves(finished):
    assert {p.name for p in finished.iterdir()} == {"loss.jsonl", "loss.png", "policy", "snapshots", "state.pt"}
    records = [json.loads(line) for line in (finished / "loss.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == list(range(10, 151, 10))
    assert records[-1]["train_loss"] < 0.9 * records[0]["train_loss"]
    validation = [r["val_loss"] for r in records if "val_loss" in r]
    assert len(validation) == 3
    assert validation[-1] < validation[0]
    policy = load_policy(finished / "policy")
    assert policy.config.task == "lift"
    assert policy.config.action_repr == "absolute_rot6d"
    assert policy.config.obs_keys == ("object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
    assert load_policy(finished / "snapshots" / "step_000100").config == policy.config
    training = json.loads((finished / "policy" / "config.json").read_text())["training"]
    assert training["steps_done"] == training["settings"]["max_steps"] == 150
    assert training["data"]["episodes"] == 3
    assert training["dataset"] == "lift.hdf5"


def test_the_shipped_policy_is_the_average(finished):
    state = torch.load(finished / "state.pt", weights_only=True)
    names = list(state["network"])
    stored = weights(finished)
    assert all(torch.equal(stored[f"model.{n}"], a.half()) for n, a in zip(names, state["ema"], strict=True))
    assert any(not torch.equal(stored[f"model.{n}"], state["network"][n].half()) for n in names)


def test_a_finished_run_is_not_repeated(finished, dataset):
    before, lines = weights(finished), (finished / "loss.jsonl").read_text()
    run(settings(f"dataset={dataset}", f"output={finished}", "max_steps=150"))
    assert (finished / "loss.jsonl").read_text() == lines
    assert all(torch.equal(value, before[name]) for name, value in weights(finished).items())


def wait_for_step(output, process, step):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        curve = output / "loss.jsonl"
        lines = curve.read_text().splitlines(keepends=True) if curve.exists() else []
        if lines and lines[-1].endswith("\n") and json.loads(lines[-1])["step"] >= step:
            return
        time.sleep(0.005)
    raise AssertionError("the run did not get anywhere in two minutes")


def test_kill_and_resume(dataset, tmp_path):
    """Killed twice with SIGKILL, a run ends with the weights of one that was left alone."""
    options = [f"dataset={dataset}", "max_steps=400", "checkpoint_every=45"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    undisturbed = subprocess.Popen(command(*options, f"output={tmp_path / 'whole'}"), env=environment)
    output = tmp_path / "killed"
    steps = []
    for kill_at in (80, 220):
        process = subprocess.Popen(command(*options, f"output={output}"), env=environment, stderr=subprocess.DEVNULL)
        wait_for_step(output, process, kill_at)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        steps.append(torch.load(output / "state.pt", weights_only=True)["step"])
    assert 45 <= steps[0] < steps[1] < 400
    done = subprocess.run(command(*options, f"output={output}"), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "trained policy" in done.stdout
    assert undisturbed.wait() == 0
    expected = weights(tmp_path / "whole")
    for name, value in weights(output).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)
    curves = [
        [(r["step"], r["train_loss"]) for r in map(json.loads, (folder / "loss.jsonl").read_text().splitlines())]
        for folder in (output, tmp_path / "whole")
    ]
    assert [step for step, _ in curves[0]] == sorted({*range(10, 401, 10), *range(45, 401, 45)})
    assert [loss for _, loss in curves[0]] == pytest.approx([loss for _, loss in curves[1]], rel=1e-3)


def test_other_settings_or_data_in_the_same_output(finished, dataset, tmp_path):
    with pytest.raises(TrainingError, match=r"holds a run with other settings.*another output, or overwrite=true"):
        run(settings(f"dataset={dataset}", f"output={finished}", "max_steps=151"))
    other = write_dataset(tmp_path / "other.hdf5", seed=1)
    with pytest.raises(TrainingError, match=r"data: .*sha256"):
        run(settings(f"dataset={other}", f"output={finished}", "max_steps=150"))


@pytest.mark.parametrize("conditioning", ["local", "inpainting"])
def test_other_conditionings(dataset, tmp_path, conditioning):
    """Trained as diffusion_policy does; the policy is stored and acts."""
    output = tmp_path / "run"
    options = [f"+model.conditioning={conditioning}", "scheduler.prediction_type=sample", "max_steps=60"]
    run(settings(f"dataset={dataset}", f"output={output}", *options))
    losses = [json.loads(line)["train_loss"] for line in (output / "loss.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.7 * losses[0]
    policy = load_policy(output / "policy")
    assert policy.config.conditioning == conditioning
    obs = {key: torch.zeros(2, 2, d) for key, d in policy.config.obs_dims.items()}
    assert policy.predict_action(obs, generator=torch.Generator().manual_seed(0)).action.shape == (2, 8, 10)


def test_bf16(finished, dataset, tmp_path):
    """Weights and statistics stay float32; the curve is that of float32 to bf16's digits, and not to more."""
    run(settings(f"dataset={dataset}", f"output={tmp_path / 'run'}", "max_steps=150", "precision=bf16"))
    curves = [
        [json.loads(line)["train_loss"] for line in (folder / "loss.jsonl").read_text().splitlines()]
        for folder in (finished, tmp_path / "run")
    ]
    assert curves[0] != curves[1]
    np.testing.assert_allclose(curves[1], curves[0], rtol=0.05)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert {v.dtype for v in [*state["network"].values(), *state["ema"]]} == {torch.float32}
    with pytest.raises(ValueError, match="precision must be float32 or bf16, got 'fp16'"):
        run(settings(f"dataset={dataset}", f"output={tmp_path / 'other'}", "precision=fp16"))


def test_export_to_lerobot(dataset, tmp_path, capsys):
    output = tmp_path / "run"
    options = [f"dataset={dataset}", f"output={output}", "export_lerobot=true", "max_steps=10", "storage_dtype=float32"]
    run(settings(*options))
    ours, theirs = load_policy(output / "policy"), load_policy(output / "lerobot")
    for name, value in ours.network.state_dict().items():
        if "cond_encoder" not in name:  # whose columns have LeRobot's order
            torch.testing.assert_close(theirs.network.state_dict()[name], value)
    assert f"{output / 'lerobot'}: " in capsys.readouterr().out
    refused = [f"output={tmp_path / 'refused'}", "+model.conditioning=inpainting"]
    with pytest.raises(CheckpointError, match="LeRobot"):
        run(settings(*options, *refused))
    assert not (tmp_path / "refused").exists()


def test_overwrite(dataset, tmp_path):
    output = tmp_path / "run"
    options = [f"dataset={dataset}", f"output={output}", "overwrite=true"]
    run(settings(*options, "max_steps=20"))
    run(settings(*options, "max_steps=30"))
    assert json.loads((output / "policy" / "config.json").read_text())["training"]["steps_done"] == 30
    for refused in ("scheduler.variance_type=learned", "model.horizon=64", "task.action_dim=20"):
        with pytest.raises(ValueError, match=r"not supported|no training sequences|actions have 10 dimensions"):
            run(settings(*options, "max_steps=30", refused))
    assert load_policy(output / "policy").config.task == "lift"  # nothing is removed for a run that cannot start
    stranger = tmp_path / "thesis"
    stranger.mkdir()
    (stranger / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="holds no training run; not removed"):
        run(settings(f"dataset={dataset}", f"output={stranger}", "overwrite=true"))
    assert (stranger / "thesis.tex").exists()


def test_an_output_that_is_a_file(dataset, tmp_path):
    output = tmp_path / "run"
    output.write_text("a file")
    for overwrite in ("true", "false"):
        with pytest.raises(TrainingError, match="is a file; give a folder"):
            run(settings(f"dataset={dataset}", f"output={output}", "max_steps=20", f"overwrite={overwrite}"))
    assert output.read_text() == "a file"


def test_damaged_state(dataset, tmp_path):
    options = [f"dataset={dataset}", f"output={tmp_path}", "max_steps=20"]
    run(settings(*options))
    data = (tmp_path / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(TrainingError, match=r"state\.pt is not a readable training state"):
        run(settings(*options))


@pytest.mark.parametrize(
    ("override", "kind", "message"),
    [
        ("lr=1e30", TrainingError, "the loss is not finite at step 10"),
        ("train_filter=test", ValueError, "no mask/test"),
        ("task.action_dim=20", ValueError, "actions have 10 dimensions, the policy config says 20"),
        ("device=cuda:77", ValueError, "device=cuda:77: PyTorch finds .*; use device=cpu"),
        ("device=abacus", ValueError, "device=abacus: "),
        ("model.horizon=64", ValueError, "no training sequences: 3 episodes"),
        ("scheduler.variance_type=learned", ScheduleError, "variance_type 'learned' is not supported"),
        ("storage_dtype=int8", ValueError, "storage_dtype must be float32 or float16"),
    ],
)
def test_what_cannot_be_trained(dataset, tmp_path, override, kind, message):
    with pytest.raises(kind, match=message):
        run(settings(f"dataset={dataset}", f"output={tmp_path / 'run'}", "max_steps=20", override))
    assert not (tmp_path / "run" / "policy").exists()
    assert not (tmp_path / "run" / "loss.jsonl").exists()  # refused before the first step, or at the first point


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=lfit"], "Could not find 'task/lfit'"),
        (["dataset=nowhere.hdf5"], "dps-train: dataset nowhere.hdf5 does not exist"),
        (["learning_rate=1"], "Could not override 'learning_rate'"),
    ],
)
def test_errors_on_the_command_line(tmp_path, overrides, message):
    done = subprocess.run(
        command(*overrides, f"output={tmp_path / 'run'}"), capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert not (tmp_path / "run").exists()
