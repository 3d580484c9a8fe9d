"""Samplers by name."""

import pytest
import torch
from closed_form import two_modes

from diffpolicy_spec import Gains, Nearest, Parent, Picard, SamplerConfig, bind
from diffpolicy_spec.drafting import Model
from diffpolicy_spec.samplers import DRAFTERS
from diffpolicy_spec.verification import VERIFIERS

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
    SamplerConfig("tree"),
    SamplerConfig("tree", num_inference_steps=10, eta=1.0, options={"children": [3, 1], "depth": 2}),
    SamplerConfig("speculative"),
    SamplerConfig("speculative", options={"window": "all", "verifier": "block"}),
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


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_every_drafter_by_name_samples_with_every_verifier(drafter, verifier):
    options = {"drafter": drafter, "verifier": verifier, "window": 6}
    sampler = bind(SamplerConfig(options=options), CONFIG, gains(), has_draft=True)
    sample = sampler(TARGET.denoiser(sampler.schedule), torch.randn(3, 4, 1), draft=lambda x, t, c: x.tanh())
    assert bool(torch.isfinite(sample.x0).all())
    assert bool((sample.stats.draft_calls > 0).all()) == sampler.uses_draft


def test_the_frozen_drafts_have_two_forms():
    def drafter(name):
        return bind(SamplerConfig(options={"drafter": name}), CONFIG).drafter

    assert drafter("parent") == Parent("x0")
    assert drafter("drift") == Parent("drift")
    assert drafter("nearest") == Nearest("x0")
    assert drafter("drift_nearest") == Nearest("drift")


def test_draft_networks_are_used_where_there_is_one():
    def sampler(has_draft=True, speculation=None, **options):
        return bind(SamplerConfig(options=options), CONFIG, speculation, has_draft=has_draft)

    assert isinstance(sampler(drafter="model").drafter, Model)
    assert sampler(drafter="model").uses_draft
    assert sampler().drafter.corrector  # auto
    assert sampler().uses_draft
    assert sampler().drafter.memory == 1
    assert not sampler(corrector=False).uses_draft
    assert not sampler(has_draft=False).drafter.corrector
    assert not sampler(drafter="nearest").uses_draft
    both = sampler(speculation=gains())
    assert both.drafter.gains is None  # fitted to the network, not to what a draft network leaves of it
    assert sampler(speculation=gains(), gain=True).drafter.gains is not None
    assert sampler(speculation=gains(), corrector=False).drafter.gains is not None
    given = sampler(corrector=True, first_sweeps=3, sweeps=1).drafter
    assert (given.first_sweeps, given.sweeps) == (3, 1)
    with pytest.raises(ValueError, match="drafter=model, but the checkpoint has no draft network: train one"):
        sampler(has_draft=False, drafter="model")
    with pytest.raises(ValueError, match="corrector=true, but the checkpoint has no draft network: train one"):
        sampler(has_draft=False, corrector=True)
    with pytest.raises(ValueError, match="corrector must be true, false or auto, got 'maybe'"):
        sampler(corrector="maybe")


def test_a_draft_network_that_is_announced_must_be_given():
    sampler = bind(SamplerConfig(options={"drafter": "model"}), CONFIG, has_draft=True)
    with pytest.raises(ValueError, match="needs a draft network"):
        sampler(TARGET.denoiser(sampler.schedule), torch.randn(1, 4, 1))


def test_the_window_all_is_as_wide_as_the_chain():
    def rows(window):
        seen = []
        sampler = bind(SamplerConfig(options={"window": window, "drafter": "nearest"}), CONFIG)
        denoise = TARGET.denoiser(sampler.schedule)

        def watch(x, t, chain):
            seen.append(len(x))
            return denoise(x, t, chain)

        sampler(watch, torch.ones(1, 4, 1), generator=torch.Generator().manual_seed(2))
        return seen

    assert rows("all") == rows(30) == rows(99)
    assert rows("all")[0] == 30


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
    with pytest.raises(ValueError, match=r"known: .*ddpm, ddim, paradigms, tree, speculative"):
        SamplerConfig("euler")
    with pytest.raises(ValueError, match=r"unknown options for ddpm: window"):
        SamplerConfig("ddpm", options={"window": 3})
    with pytest.raises(ValueError, match="known: parent, nearest, drift, drift_nearest, model, picard"):
        bind(SamplerConfig(options={"drafter": "oracle"}), CONFIG)
    with pytest.raises(ValueError, match="unknown verifier 'blocks'; known: steps, block"):
        bind(SamplerConfig(options={"verifier": "blocks"}), CONFIG)
    with pytest.raises(ValueError, match="unknown options for tree: window; known: children, depth"):
        SamplerConfig("tree", options={"window": 3})
    with pytest.raises(ValueError, match="unknown options for speculative: children"):
        SamplerConfig(options={"children": 3})
    with pytest.raises(ValueError, match="gain"):
        bind(SamplerConfig(options={"gain": "maybe"}), CONFIG)


@pytest.mark.parametrize(("config", "message"), [
    (SamplerConfig(options={"window": 0}), "at least 1"),
    (SamplerConfig(options={"window": 2.5}), "whole number"),
    (SamplerConfig(options={"window": [1, 2]}), "each of 30 steps"),
    (SamplerConfig(options={"window": "wide"}), "whole number"),
    (SamplerConfig(num_inference_steps=10, eta=0.0), "eta = 0"),
    (SamplerConfig(num_inference_steps=2.5), "whole number"),
    (SamplerConfig(options={"window": True}), "whole number"),
    (SamplerConfig("tree", num_inference_steps=10, eta=0.0), "eta = 0"),
    (SamplerConfig("tree", options={"children": 0}), "positive number of children"),
    (SamplerConfig("tree", options={"depth": 0}), "positive number of children"),
    (SamplerConfig("tree", options={"children": [2, 2], "depth": 3}), "3 of them for depth 3"),
    (SamplerConfig("tree", options={"children": 9, "depth": 9}), "too large"),
    (SamplerConfig(options={"sweeps": 0}), "Picard needs"),
    (SamplerConfig("paradigms", options={"tolerance": -0.1}), "tolerance"),
    (SamplerConfig("paradigms", options={"window": 0}), "at least 1"),
])  # fmt: skip
def test_what_cannot_be_sampled_is_refused_when_it_is_bound(config, message):
    with pytest.raises(ValueError, match=message):
        bind(config, CONFIG)
