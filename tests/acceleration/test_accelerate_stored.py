"""Gains, a draft network and the stored choice of a calibrated folder, used for a live policy of the same weights."""

from __future__ import annotations

import json
import platform

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from test_accelerate import DA, DO, TO, T, chunk, close, halve, lerobot_policy, transformer_policy, unet_policy

import diffpolicy_spec as dps
from diffpolicy_spec.acceleration.shared import share
from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.choice.fingerprint import fingerprint
from diffpolicy_spec.choice.record import Choice, processor
from diffpolicy_spec.policies import DiffusionPolicy, LinearNormalizer, PolicyConfig, UnetConfig
from diffpolicy_spec.policies.draft import DraftNetwork
from diffpolicy_spec.policies.normalizer import fit_limits
from diffpolicy_spec.scheduler_settings import training_abar

K = 20


def scheduler():
    return DDPMScheduler(num_train_timesteps=K, beta_schedule="squaredcos_cap_v2")


def gains(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    G = 0.01 * torch.randn((K, T * DA, T * DA), generator=generator)
    return dps.Gains(G, torch.arange(K).flip(0)).state_dict()


def draft(condition: int = TO * DO):
    abar = torch.from_numpy(training_abar(scheduler().config)).float()
    torch.manual_seed(3)
    return DraftNetwork(T, DA, condition, abar, clip=1.0, hidden=16, depth=1).stored()


def choice(weights: str, **changes):
    values = {
        "device": "cpu", "processor": processor() or platform.machine(), "torch": torch.__version__,
        "weights": weights, "num_inference_steps": None, "eta": None, "name": "narrow", "method": "speculative",
        "options": {"window": 3}, "runtime": dps.RuntimeConfig("static"), "calls": 8.0, "rows": 20.0,
        "latency_ms": 1.0, "latency_ms_p95": 1.0, "sequential_ms": 2.0, "call_cost_ms": {}, "candidates": (),
    }  # fmt: skip
    return Choice(**{**values, **changes})


def folder(path, live, speculation, choices=()):
    """A native folder of a live policy's weights, as dps-convert and dps-calibrate leave it."""
    network = share(live).network
    config = PolicyConfig(
        obs_dims={"obs": DO}, action_dim=DA, action_repr="raw", horizon=T, n_obs_steps=TO, n_action_steps=4,
        unet=UnetConfig(down_dims=(16, 32), kernel_size=3, diffusion_step_embed_dim=16),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    params = {"obs": fit_limits(rng.normal(size=(9, DO))), "action": fit_limits(rng.normal(size=(9, DA)))}
    copied = type(network)(DA, TO * DO, 16, (16, 32), 3)
    copied.load_state_dict(network.state_dict())
    settings = {**scheduler().config, "_class_name": "DDPMScheduler"}
    plain = {k: v for k, v in settings.items() if isinstance(v, int | float | str | bool | type(None))}
    DiffusionPolicy(config, copied, LinearNormalizer(params), plain, speculation, choices).save(path)
    return path


@pytest.fixture
def live():
    torch.manual_seed(0)
    return unet_policy(scheduler=scheduler())


def used(policy):
    return vars(getattr(policy, "diffusion", policy))["_diffpolicy_spec_sampler"]._bound[1]


def test_gains_and_draft_network_of_a_folder(tmp_path, live):
    where = folder(tmp_path / "gains", live.model, gains())
    chunk(dps.accelerate(live, "speculative", speculation=where))
    assert used(live).drafter.gains is not None
    assert live.last_sample_stats.draft_calls.max() == 0
    where = folder(tmp_path / "draft", live.model, draft() | gains())
    first = chunk(dps.accelerate(live, "speculative", speculation=where))
    assert (live.last_sample_stats.draft_calls > 0).all()
    assert close(chunk(live), first)


def test_lerobots_network_has_other_names_and_the_same_weights(tmp_path):
    torch.manual_seed(0)
    policy = lerobot_policy(scheduler())
    where = folder(tmp_path / "native", policy.diffusion.unet, draft())
    chunk(dps.accelerate(policy, speculation=str(where)))
    assert (policy.last_sample_stats.draft_calls > 0).all()


def test_auto_is_the_stored_choice(tmp_path, live):
    tensors = draft()
    weights = fingerprint(share(live.model).network, tensors)
    where = folder(tmp_path / "native", live.model, tensors, (choice(weights),))
    chunk(dps.accelerate(live, speculation=where))
    assert used(live).config.options == {"window": 3}
    assert used(live).config.runtime == dps.RuntimeConfig("static")
    other = folder(tmp_path / "steps", live.model, tensors, (choice(weights, num_inference_steps=10),))
    with pytest.warns(UserWarning, match="no choice is stored for cpu, all steps"):
        chunk(dps.accelerate(live, speculation=other))
    live.num_inference_steps = 10
    chunk(dps.accelerate(live, speculation=other))
    assert used(live).config.options == {"window": 3}
    assert live.last_sample_stats.num_steps == 10


def test_tensors_by_name(live):
    chunk(dps.accelerate(live, speculation=gains()))
    assert used(live).drafter.gains is not None
    chunk(dps.accelerate(live, speculation=draft()))
    assert (live.last_sample_stats.draft_calls > 0).all()


def test_the_sequential_sampler_does_not_care(tmp_path, live):
    own = chunk(live)
    where = folder(tmp_path / "native", live.model, draft() | gains())
    assert close(chunk(dps.accelerate(live, "ddpm", speculation=where)), own)


def test_what_was_made_for_others_is_refused(tmp_path, live):
    where = folder(tmp_path / "native", live.model, draft())
    own = chunk(live)
    torch.manual_seed(9)
    with pytest.raises(dps.AccelerateError, match=r"native was made for other weights.*dps-calibrate"):
        dps.accelerate(unet_policy(scheduler=scheduler()), speculation=where)
    torch.manual_seed(0)
    hooked = unet_policy(scheduler=scheduler())
    hooked.model.register_forward_hook(lambda module, args, out: out)
    with pytest.raises(dps.AccelerateError, match="not a published one in float32"):
        dps.accelerate(hooked, speculation=where)
    with pytest.raises(dps.AccelerateError, match="conditions of 7 dimensions; this policy's have 8"):
        dps.accelerate(live, speculation=draft(7))
    with pytest.raises(dps.AccelerateError, match="training mode"):
        dps.accelerate(transformer_policy(scheduler=scheduler()).train(), speculation=gains())
    assert torch.equal(chunk(live), own), "a refused policy is as it was"


def test_weights_that_change_later_keep_the_law_and_are_told_about_when_the_chain_is_bound_anew(tmp_path, live):
    where = folder(tmp_path / "native", live.model, gains())
    dps.accelerate(live, speculation=where)
    chunk(live)
    halve(live.model)
    chunk(live)  # gains move the cost only
    live.num_inference_steps = 10
    with pytest.raises(dps.AccelerateError, match="other weights"):
        chunk(live)


def test_folders_and_tensors_that_are_of_no_use(tmp_path, live):
    with pytest.raises(dps.AccelerateError, match=r"not a native checkpoint folder.*dps-convert"):
        dps.accelerate(live, speculation=tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps({"type": "diffusion"}))
    with pytest.raises(CheckpointError, match="LeRobot"):
        dps.accelerate(live, speculation=tmp_path)
    with pytest.raises(dps.AccelerateError, match="neither gains nor a draft network"):
        dps.accelerate(live, speculation={"x": torch.zeros(2)})
    empty = folder(tmp_path / "empty", live.model, None)
    with pytest.raises(dps.AccelerateError, match="nothing for speculation: run dps-calibrate"):
        dps.accelerate(live, speculation=empty)
    with pytest.raises(ValueError, match="no gains for this schedule"):
        dps.accelerate(live, dps.SamplerConfig(options={"gain": True}))
