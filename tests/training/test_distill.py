"""Distilling a draft network from a small policy: what is recorded, that it learns, the command."""

import dataclasses

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tiny_dataset import write_dataset
from tiny_policy import tiny_policy

from diffpolicy_spec import SamplerConfig, load_policy
from diffpolicy_spec.checkpoints import CheckpointError
from diffpolicy_spec.training.cli import run
from diffpolicy_spec.training.distill import DistillConfig, distill, record_pairs

SMALL = DistillConfig(hidden=96, depth=2, max_steps=400, rounds=2, chains=8, batch_size=256, windows=("all",))


@pytest.fixture(scope="module")
def policy():
    """A trained one: what a random network says is nothing that could be learned."""
    return load_policy("lift")


@pytest.fixture(scope="module")
def conditions(policy):
    return torch.randn(24, policy.config.condition_dim, generator=torch.Generator().manual_seed(3)) * 0.5


@pytest.fixture(scope="module")
def network(policy, conditions):
    return distill(policy, conditions, SMALL)


def test_pairs_are_evaluations_of_the_policys_network(policy, conditions):
    schedule = policy.bind(SamplerConfig("ddpm")).schedule
    pairs = record_pairs(policy, schedule, conditions[:3], None, generator=torch.Generator().manual_seed(0))
    T, Da = policy.config.horizon, policy.config.action_dim
    denoise, some = policy.denoiser(conditions[:3]), pairs.at(torch.arange(0, len(pairs), 17))
    for x, m in ((some.x, some.m), (some.x_old, some.m_old)):
        rows = x.view(-1, T, Da)
        x0 = schedule.predict_x0(denoise(rows, schedule.timesteps[some.k], some.chain), rows, some.k).flatten(1)
        torch.testing.assert_close(x0, m, atol=1e-4, rtol=1e-4)
    assert torch.equal(pairs.x[pairs.first], pairs.x_old[pairs.first])
    # each step of each chain is met for the first time exactly once, and before it is met again
    assert int(pairs.first.sum()) == 3 * schedule.num_steps
    assert not torch.equal(pairs.x[~pairs.first], pairs.x_old[~pairs.first])


def test_the_network_learns_the_policy(policy, conditions, network):
    """On chains it has not seen, it is nearer to the policy's x0 than an untrained one, in units of acceptance."""
    schedule = policy.bind(SamplerConfig("ddpm")).schedule
    fresh = distill(policy, conditions, dataclasses.replace(SMALL, max_steps=1, rounds=1, chains=1))
    pairs = record_pairs(policy, schedule, conditions, None, generator=torch.Generator().manual_seed(7))

    def cost(net):
        rows = pairs.x.view(-1, policy.config.horizon, policy.config.action_dim)
        s = net(rows, schedule.timesteps[pairs.k], conditions[pairs.chain]).flatten(1)
        return float(torch.log1p(schedule.on("cpu").shift[pairs.k] * (s - pairs.m).norm(dim=1)).mean())

    assert cost(network) < 0.9 * cost(fresh)


def test_the_same_seed_gives_the_same_network(policy, conditions):
    short = dataclasses.replace(SMALL, max_steps=5, rounds=1, chains=2)
    a, b = (distill(policy, conditions, short).state_dict() for _ in range(2))
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=0, atol=0)


@pytest.mark.parametrize("changes", [{"max_steps": 0}, {"windows": ()}, {"lr": -1.0}, {"hidden": 0}])
def test_settings_that_cannot_be_used(changes):
    with pytest.raises(ValueError, match="distillation"):
        dataclasses.replace(SMALL, **changes)


# --- the command ---


def settings(**changes):
    with initialize_config_module("diffpolicy_spec.configs", version_base="1.3"):
        cfg = OmegaConf.to_container(compose("train"), resolve=True)
    small = {"hidden": 16, "depth": 1, "max_steps": 4, "rounds": 2, "chains": 4, "batch_size": 32}
    return cfg | {"distill": cfg["distill"] | small, "num_threads": 1} | changes


def test_the_command_stores_the_network_beside_the_policy_and_keeps_what_is_there(tmp_path):
    folder, dataset = tmp_path / "policy", write_dataset(tmp_path / "demos.hdf5")
    policy = tiny_policy()
    policy.speculation = {"other.note": torch.arange(3.0)}
    policy.save(folder)
    assert load_policy(folder).draft_network is None
    with pytest.raises(ValueError, match="no draft network"):
        load_policy(folder).bind(SamplerConfig(options={"drafter": "model"}))
    assert run(settings(draft=str(folder), dataset=str(dataset))) == folder
    again = load_policy(folder)
    assert again.draft_network.hidden == 16
    assert torch.equal(again.speculation["other.note"], torch.arange(3.0))
    assert again.bind().drafter.corrector
    out = again.predict_action({key: torch.zeros(1, 2, d) for key, d in again.config.obs_dims.items()})
    assert int(out.sample.stats.draft_calls) > 0
    alone = again.predict_action(
        {key: torch.zeros(1, 2, d) for key, d in again.config.obs_dims.items()},
        sampler=again.bind(SamplerConfig(options={"drafter": "model", "verifier": "block", "window": 8})),
    )
    assert int(alone.sample.stats.draft_calls) == int(alone.sample.stats.drafted)


def test_the_command_says_what_is_wrong(tmp_path):
    with pytest.raises(CheckpointError, match="neither an existing path nor a shipped policy"):
        run(settings(draft=str(tmp_path / "nothing")))
    folder = tmp_path / "policy"
    tiny_policy().save(folder)
    with pytest.raises(FileNotFoundError):
        run(settings(draft=str(folder), dataset=str(tmp_path / "none.hdf5")))
    cfg = settings(draft=str(folder))
    with pytest.raises(ValueError, match="distill has no widht"):
        run(cfg | {"distill": cfg["distill"] | {"widht": 3}})
