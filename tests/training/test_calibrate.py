"""dps-calibrate on a small policy and a real hdf5."""

import warnings

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tiny_dataset import write_dataset
from tiny_policy import tiny_policy

from diffpolicy_spec import SamplerConfig, load_policy
from diffpolicy_spec.choice.fingerprint import fingerprint
from diffpolicy_spec.data import DataError, read_robomimic
from diffpolicy_spec.runtime import RuntimeConfig
from diffpolicy_spec.training.calibrate import draw_conditions, run
from diffpolicy_spec.training.moments import draw_moments, moments_of


def settings(**changes):
    with initialize_config_module("diffpolicy_spec.configs", version_base="1.3"):
        cfg = OmegaConf.to_container(compose("calibrate"), resolve=True)
    few = {"chains": 6, "perturbations": 1, "choice": False, "moments": 4, "timed": 2, "probes": 1, "finalists": 2,
           "threads": [1]}  # fmt: skip
    return cfg | few | changes


def test_the_gains_are_stored_and_used(tmp_path):
    folder, dataset = tmp_path / "policy", write_dataset(tmp_path / "demos.hdf5")
    tiny_policy().save(folder)
    assert load_policy(folder).bind().drafter.gains is None
    assert run(settings(checkpoint=str(folder), dataset=str(dataset))) == folder
    gains = load_policy(folder).bind().drafter.gains
    assert gains.G.shape == (100, 160, 160)
    assert bool(torch.isfinite(gains.G).all())
    # the checkpoint says the same as before
    for name, value in tiny_policy().network.state_dict().items():
        torch.testing.assert_close(load_policy(folder).network.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    assert load_policy(folder).bind(SamplerConfig(options={"gain": True})).drafter.gains is not None


def test_the_choice_is_stored_beside_the_gains_and_bound_by_auto(tmp_path, capsys):
    folder, dataset = tmp_path / "policy", write_dataset(tmp_path / "demos.hdf5")
    tiny_policy().save(folder)
    given = {"checkpoint": str(folder), "dataset": str(dataset), "choice": True, "num_inference_steps": 6}
    run(settings(**given, gains=False))
    said = capsys.readouterr().out
    assert "sampler=auto is " in said
    assert "gains" not in {path.stem for path in folder.iterdir()}
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "speculation.json"]
    policy = load_policy(folder)
    (choice,) = policy.choices
    assert (choice.device, choice.num_inference_steps, choice.runtime) == ("cpu", 6, RuntimeConfig(threads=1))
    assert choice.weights == fingerprint(policy.network, policy.speculation)
    assert f"{choice.sequential_ms:.1f} ms" in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bound = policy.bind(SamplerConfig("auto", 6))
    assert bound.config == choice.config
    # For another chain, and with another runtime: it stands beside the first.
    run(settings(**given, gains=False, eta=0.5, runtimes=[{"mode": "eager"}, {"mode": "static"}]))
    assert list(load_policy(folder).choices[1].call_cost_ms) == ["eager, 1 thread", "static, 1 thread"]
    assert [c.eta for c in load_policy(folder).choices] == [None, 0.5]
    assert load_policy(folder).choices[0] == choice


def test_gains_fitted_anew_leave_what_else_is_stored(tmp_path):
    folder, dataset = tmp_path / "policy", write_dataset(tmp_path / "demos.hdf5")
    tiny_policy(speculation={"other": torch.ones(3)}).save(folder)
    run(settings(checkpoint=str(folder), dataset=str(dataset)))
    run(settings(checkpoint=str(folder), dataset=str(dataset), structure="kronecker", seed=1))
    stored = load_policy(folder).speculation
    assert torch.equal(stored["other"], torch.ones(3))
    assert load_policy(folder).bind().drafter.gains is not None
    assert "gains.G" not in stored  # nothing is left of the dense ones


def test_moments_come_with_the_plan_of_the_chunk_before(tmp_path):
    policy, dataset = tiny_policy(), write_dataset(tmp_path / "demos.hdf5")
    episodes = read_robomimic(dataset, policy.config.obs_dims, filter_key="train")
    count = sum(len(episode) for episode in episodes)
    drawn = moments_of(policy, episodes, count, seed=0)  # every moment once
    assert len(drawn) == count
    begins = drawn.previous_plan.isnan().all(2).all(1)
    assert int(begins.sum()) == 8 * len(episodes)  # the first 8 steps of each have no chunk before
    assert bool(torch.isfinite(drawn.previous_plan[~begins]).all())
    for key, size in policy.config.obs_dims.items():
        assert drawn.obs[key].shape == (count, 2, size)
        newest = {tuple(row.tolist()) for row in drawn.obs[key][:, 1]}
        assert newest == {tuple(row.tolist()) for episode in episodes for row in torch.from_numpy(episode.obs[key])}
    # The frame before the newest one is its neighbour in the episode.
    neighbours = {
        (tuple(now.tolist()), tuple(before.tolist()))
        for episode in episodes
        for now, before in zip(episode.obs["object"], episode.obs["object"][[0, *range(len(episode) - 1)]], strict=True)
    }
    assert {(tuple(now), tuple(before)) for before, now in drawn.obs["object"].tolist()} == neighbours
    again = draw_moments(policy, dataset, count, "train", seed=0)
    assert torch.equal(again.obs["object"], drawn.obs["object"])
    assert len(draw_moments(policy, dataset, count + 5, "train", seed=0)) == count + 5
    with pytest.raises(DataError, match="no demonstrations"):
        moments_of(policy, [], 3, seed=0)


def test_conditions_are_moments_of_the_demonstrations(tmp_path):
    policy, dataset = tiny_policy(), write_dataset(tmp_path / "demos.hdf5")
    some = draw_conditions(policy, dataset, 10, "train", seed=0)
    assert some.shape == (10, policy.config.condition_dim)
    assert torch.equal(some, draw_conditions(policy, dataset, 10, "train", seed=0))
    assert len(some.unique(dim=0)) > 5
    assert len(draw_conditions(policy, dataset, 500, "train", seed=0)) == 500


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(ValueError, match="checkpoint=PATH"):
        run(settings(checkpoint=None))
    with pytest.raises(ValueError, match="nothing to do"):
        run(settings(checkpoint="lift", gains=False, choice=False))
    with pytest.raises(ValueError, match="threads must be at least 1"):
        run(settings(checkpoint="lift", gains=False, choice=True, threads=[0]))
    with pytest.raises(ValueError, match="use cpu or cuda"):
        run(settings(checkpoint="lift", device="meta"))
    folder = tmp_path / "policy"
    tiny_policy().save(folder)
    with pytest.raises(FileNotFoundError):
        run(settings(checkpoint=str(folder), dataset=str(tmp_path / "none.hdf5")))
    with pytest.raises(DataError, match="mask"):
        run(settings(checkpoint=str(folder), dataset=str(write_dataset(tmp_path / "d.hdf5")), filter="best"))
