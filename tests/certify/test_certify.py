"""Certification of real samplers on a closed-form policy: what is exact passes, what is mis-set is caught."""

import json

import pytest
import torch
from closed_form_policy import CONDITIONS, ClosedFormPolicy

from diffpolicy_spec import SamplerConfig, bind
from diffpolicy_spec.certify import certify, reference_of

CHUNKS = 400


def verdict_of(config: SamplerConfig, steps: int = 30, **options):
    options = {"chunks": CHUNKS, "splits": 0, "batch": 1000} | options
    return certify(ClosedFormPolicy(steps), config, CONDITIONS, **options)


@pytest.mark.parametrize(
    "config",
    [
        SamplerConfig(),
        SamplerConfig(options={"drafter": "parent", "window": 30}),
        SamplerConfig(options={"drafter": "nearest", "window": 8}),
        SamplerConfig(options={"drafter": "nearest", "verifier": "block", "window": 16}),
        SamplerConfig("tree", options={"children": 3, "depth": 2}),
        SamplerConfig(num_inference_steps=12),
        SamplerConfig(num_inference_steps=12, eta=0.7),
        SamplerConfig("paradigms", options={"tolerance": 0.0}),
    ],
    ids=["picard", "parent", "nearest", "block", "tree", "respaced", "ddim eta", "paradigms to the end"],
)
def test_exact_samplers_pass(config):
    verdict = verdict_of(config)
    assert verdict.verdict == "no difference found", verdict.to_markdown()
    assert verdict.cost.calls < verdict.reference_cost.calls


def test_another_seed_passes_too():
    for seed in (1, 2, 3):
        assert not verdict_of(SamplerConfig(), chunks=200, seed=seed).different


@pytest.mark.parametrize(
    "config",
    [
        SamplerConfig("paradigms", options={"tolerance": 3.0}),
        SamplerConfig("ddim", 10),
        SamplerConfig("ddpm", 5),
    ],
    ids=["paradigms with a tolerance", "DDIM-10 against DDPM", "DDPM of few steps"],
)
def test_inexact_samplers_are_caught(config):
    assert verdict_of(config, steps=100).verdict == "difference found"


def test_a_biased_coupling_is_caught(monkeypatch):
    config = SamplerConfig(options={"drafter": "nearest", "window": 16})
    assert not verdict_of(config).different

    def accepts_too_often(v, xi, u):
        return torch.log1p(-u) <= 1.0 - ((xi + 0.5 * v) * v).sum(-1)

    with monkeypatch.context() as patch:
        patch.setattr("diffpolicy_spec.verification.accept_reflection", accepts_too_often)
        assert verdict_of(config).different
    with monkeypatch.context() as patch:  # a rejected step keeps its noise where it should be mirrored
        patch.setattr("diffpolicy_spec.verification.reflect", lambda v, xi: xi)
        assert verdict_of(config).different

    # Block verification whose rejected step keeps its noise where the residual must be drawn.
    block = SamplerConfig(options={"drafter": "nearest", "window": 16, "verifier": "block"})
    with monkeypatch.context() as patch:
        patch.setattr("diffpolicy_spec.verification.residual_step", lambda v, xi, log_p, w: xi)
        assert verdict_of(block).different


def test_a_draft_network_is_asked_under_the_conditions_of_its_chains():
    """Drafting with the policy's own denoiser: every draft is perfect, so hardly a call is needed."""

    class WithDraft(ClosedFormPolicy):
        def bind(self, config):
            return bind(config, self.scheduler, has_draft=True)

        def drafter(self, condition):
            return self.denoiser(condition)  # this policy predicts x0

    config = SamplerConfig(options={"drafter": "model", "window": 30, "warm_start": False})
    verdict = certify(WithDraft(), config, CONDITIONS, chunks=100, splits=0, batch=70)
    assert not verdict.different
    assert verdict.cost.calls < 3


def test_the_reference_is_the_sequential_sampler_of_the_same_chain():
    assert reference_of(SamplerConfig()) == SamplerConfig("ddpm")
    assert reference_of(SamplerConfig(num_inference_steps=20)) == SamplerConfig("ddpm", 20)
    assert reference_of(SamplerConfig(num_inference_steps=20, eta=0.5)) == SamplerConfig("ddim", 20, 0.5)
    assert reference_of(SamplerConfig("paradigms", eta=0.0)) == SamplerConfig("ddim", None, 0.0)
    assert reference_of(SamplerConfig("ddim", 10)) == SamplerConfig("ddpm")
    own = verdict_of(SamplerConfig("ddim", 10), reference=SamplerConfig("ddim", 10))
    assert own.reference["method"] == "ddim"
    assert not own.different


def test_half_of_the_chains_are_warm_started_with_plans_of_their_observation():
    seen = []

    class Watched(ClosedFormPolicy):
        def bind(self, config):
            bound = super().bind(config)

            def sampler(denoise, noise, **options):
                seen.append((config.method, options.get("warm_start")))
                return bound(denoise, noise, **options)

            sampler.schedule, sampler.config, sampler.uses_draft = bound.schedule, bound.config, False
            return sampler

    certify(Watched(), SamplerConfig(), CONDITIONS, chunks=40, splits=0, batch=1000)
    (warm,) = [plans for method, plans in seen if method == "speculative"]
    assert all(plans is None for method, plans in seen if method == "ddpm")
    given = ~torch.isnan(warm).flatten(1).any(1)
    assert given.tolist() == [i % 2 == 1 for i in range(80)]
    assert torch.equal(warm[given][:, 1:3], warm[given][:, 2:4])  # shifted by two of four actions, the last one held
    per_observation = warm[given].view(2, 20, -1)
    assert not set(map(tuple, per_observation[0].tolist())) & set(map(tuple, per_observation[1].tolist()))


def test_everything_follows_from_the_seed():
    one, same, other = (verdict_of(SamplerConfig(), chunks=50, seed=seed) for seed in (0, 0, 1))
    assert [t.p for t in one.tests] == [t.p for t in same.tests]
    assert [t.statistic for t in one.tests] != [t.statistic for t in other.tests]


def test_the_verdict_says_what_was_found_and_what_would_have_been():
    verdict = verdict_of(SamplerConfig(), chunks=150, splits=5, alpha=0.01)
    assert "does not prove the laws equal" in verdict.said
    assert "equal" not in verdict.verdict
    assert "at least 90 % of repetitions" in verdict.said
    assert verdict.null_splits is not None
    assert verdict.null_splits[1] == 5
    data = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert data["verdict"] == "no difference found"
    assert data["alpha"] == 0.01
    assert {t["test"] for t in data["tests"]} == {t.test for t in verdict.tests}
    assert [p["effect"] for p in data["power"]] == ["mean shift", "scale", "mode weight"]
    assert data["cost"]["chunks"] == 300
    assert data["reference_cost"]["chunks"] == 600
    page = verdict.to_markdown()
    for test in verdict.tests:
        assert f"| {test.test} | {test.p:.2g} | {test.threshold:.2g} | no |" in page

    worse = verdict_of(SamplerConfig("ddim", 3), chunks=150)
    assert worse.said.startswith("Difference found, by: ")
    assert "Samplers of equal law are called different with a probability of at most 0.001" in worse.said
    assert worse.power == ()


def test_settings_out_of_range_are_refused():
    for options, said in (
        ({"chunks": 3}, "chunks must be at least 8"),
        ({"splits": -1}, "splits"),
        ({"alpha": 2.0}, "alpha"),
        ({"batch": 0}, "batch"),
    ):
        with pytest.raises(ValueError, match=said):
            verdict_of(SamplerConfig(), **options)
