"""Samplers by name."""

import pytest
import torch
from closed_form import two_modes

from diffpolicy_spec import Gains, Nearest, Parent, Picard, SamplerConfig, bind

CONFIG = {"num_train_timesteps": 30, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}
TARGET = two_modes(4)


def gains(K=30, D=4):
    return Gains(G=torch.zeros(K, D, D), timesteps=torch.arange(K - 1, -1, -1)).state_dict()


@pytest.mark.parametrize("config", [
    SamplerConfig("ddpm"),
    SamplerConfig("ddpm", num_inference_steps=10),
    SamplerConfig("ddim", num_inference_steps=10),
    SamplerConfig("ddim", num_inference_steps=10, eta=0.5),
    SamplerConfig("paradigms", options={"window": 8, "tolerance": 0.2}),
    SamplerConfig("speculative"),
    SamplerConfig("speculative", num_inference_steps=10, eta=0.5, options={"drafter": "nearest", "window": 5}),
])  # fmt: skip
def test_every_method_samples(config):
    sampler = bind(config, CONFIG)
    sample = sampler(TARGET.denoiser(sampler.schedule), torch.randn(3, 4, 1), warm_start=torch.zeros(3, 4, 1))
    assert sample.x0.shape == (3, 4, 1)
    assert sample.stats.num_steps == (config.num_inference_steps or 30)
    if config.method == "ddim":
        assert sampler.schedule.eta == (config.eta or 0.0)


def test_drafters_by_name():
    def drafter(**options):
        return bind(SamplerConfig(options=options), CONFIG, gains()).drafter

    assert isinstance(drafter(drafter="parent"), Parent)
    assert isinstance(drafter(drafter="nearest"), Nearest)
    assert isinstance(drafter(), Picard)
    assert drafter().gains is not None
    assert drafter().memory == 1
    assert drafter(gain=False).gains is None
    assert drafter(gain=False).memory == 3
    given = drafter(memory=2, ridge=0.1, sweeps=3)
    assert (given.memory, given.ridge, given.sweeps) == (2, 0.1, 3)
    assert drafter(memory=None).memory == 1  # null in a config file


def test_gains_are_used_where_they_fit():
    respaced = SamplerConfig(num_inference_steps=10)
    assert bind(respaced, CONFIG, gains()).drafter.gains is None  # auto
    with pytest.raises(ValueError, match="calibrate"):
        bind(SamplerConfig(options={"gain": True}), CONFIG)
    with pytest.raises(ValueError, match="calibrate"):
        bind(SamplerConfig(num_inference_steps=10, options={"gain": True}), CONFIG, gains())
    sampler = bind(SamplerConfig(), CONFIG, gains(D=7))
    with pytest.raises(ValueError, match="calibrate again"):
        sampler(TARGET.denoiser(sampler.schedule), torch.randn(1, 4, 1))


def test_warm_start_can_be_switched_off():
    draws = torch.Generator().manual_seed(0)
    start = torch.randn(8, 4, 1, generator=draws)

    def calls(warm_start, plan):
        sampler = bind(SamplerConfig(options={"warm_start": warm_start, "window": 30}), CONFIG)
        g = torch.Generator().manual_seed(1)
        return sampler(TARGET.denoiser(sampler.schedule), start, generator=g, warm_start=plan).stats.calls.tolist()

    plan = torch.full((8, 4, 1), 0.3)
    assert calls(False, plan) == calls(True, None)
    assert calls(True, plan) != calls(True, None)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="known: ddpm, ddim, paradigms, speculative"):
        SamplerConfig("euler")
    with pytest.raises(ValueError, match=r"unknown options for ddpm: window"):
        SamplerConfig("ddpm", options={"window": 3})
    with pytest.raises(ValueError, match="known: parent, nearest, picard"):
        bind(SamplerConfig(options={"drafter": "oracle"}), CONFIG)
    with pytest.raises(ValueError, match="gain"):
        bind(SamplerConfig(options={"gain": "maybe"}), CONFIG)


@pytest.mark.parametrize(("config", "message"), [
    (SamplerConfig(options={"window": 0}), "at least 1"),
    (SamplerConfig(options={"window": 2.5}), "whole number"),
    (SamplerConfig(options={"window": [1, 2]}), "each of 30 steps"),
    (SamplerConfig(options={"window": "wide"}), "whole number"),
    (SamplerConfig(num_inference_steps=10, eta=0.0), "eta = 0"),
    (SamplerConfig(num_inference_steps=2.5), "whole number"),
    (SamplerConfig("paradigms", options={"tolerance": -0.1}), "tolerance"),
    (SamplerConfig("paradigms", options={"window": 0}), "at least 1"),
])  # fmt: skip
def test_what_cannot_be_sampled_is_refused_when_it_is_bound(config, message):
    with pytest.raises(ValueError, match=message):
        bind(config, CONFIG)
