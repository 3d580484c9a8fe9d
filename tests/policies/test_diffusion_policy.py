"""Observations in, action chunks out; nothing is drawn for observations that cannot be used."""

import numpy as np
import pytest
import torch
from tiny_policy import OBS_DIMS, tiny_obs, tiny_policy

from diffpolicy_spec.gains import Gains
from diffpolicy_spec.noise import draw_noise
from diffpolicy_spec.policies import NormalizationError, ObservationError
from diffpolicy_spec.policies.diffusion import DiffusionPolicy
from diffpolicy_spec.policies.normalizer import LinearNormalizer
from diffpolicy_spec.samplers import SamplerConfig

DDPM = SamplerConfig(method="ddpm")


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_condition_is_normalised_oldest_first_in_the_configs_order(policy):
    obs = tiny_obs()
    condition = policy.encode(dict(reversed(obs.items())))
    assert condition.shape == (3, 2 * 19)
    assert condition.dtype == torch.float32
    expected = [
        policy.normalizer.normalize(key, torch.as_tensor(obs[key][:, step], dtype=torch.float32))
        for step in range(2)
        for key in OBS_DIMS
    ]
    torch.testing.assert_close(condition, torch.cat(expected, dim=1))


def test_tensors_and_views_are_taken(policy):
    obs = tiny_obs()
    expected = policy.encode(obs)
    torch.testing.assert_close(policy.encode({k: torch.as_tensor(v) for k, v in obs.items()}), expected)
    flipped = {k: v[:, ::-1].copy()[:, ::-1] for k, v in obs.items()}  # negative strides
    torch.testing.assert_close(policy.encode(flipped), expected)


def test_chunk(policy):
    sampler = policy.bind(DDPM)
    noise = draw_noise((3, 16, 10), sampler.schedule, seeded())
    out = policy.predict_action(tiny_obs(), sampler=sampler, noise=noise)
    assert out.action.shape == (3, 8, 10)
    assert out["action_pred"].shape == out.plan.shape == (3, 16, 10)
    assert torch.equal(out["action"], out.action_pred[:, 1:9])
    assert torch.isfinite(out.action_pred).all()
    assert out.plan.abs().max() <= 1  # clip_sample
    torch.testing.assert_close(policy.normalizer.normalize("action", out.action_pred), out.plan, rtol=1e-4, atol=1e-5)
    assert out.sample.stats.calls.tolist() == [100, 100, 100]
    with pytest.raises(KeyError, match="'action' and 'action_pred'"):
        out["actions"]


def test_the_same_noise_gives_the_same_chunk(policy):
    sampler, obs = policy.bind(DDPM), tiny_obs()
    first = policy.predict_action(obs, sampler=sampler, generator=seeded(5))
    again = policy.predict_action(obs, sampler=sampler, generator=seeded(5))
    other = policy.predict_action(obs, sampler=sampler, generator=seeded(6))
    assert torch.equal(first.plan, again.plan)
    assert not torch.allclose(first.plan, other.plan)
    start = draw_noise((3, 16, 10), sampler.schedule, seeded(5)).start
    given = policy.predict_action(obs, sampler=sampler, noise=start, generator=seeded(7))
    assert not torch.allclose(given.plan, first.plan)
    torch.testing.assert_close(
        given.plan, policy.predict_action(obs, sampler=sampler, noise=start, generator=seeded(7)).plan
    )


def test_a_chain_depends_on_its_own_observation_and_generator_only(policy):
    sampler, obs = policy.bind(DDPM), tiny_obs()
    together = policy.predict_action(obs, sampler=sampler, generator=[seeded(i) for i in range(3)])
    alone = policy.predict_action({k: v[1:2] for k, v in obs.items()}, sampler=sampler, generator=[seeded(1)])
    torch.testing.assert_close(alone.plan, together.plan[1:2], rtol=1e-3, atol=1e-4)


def test_default_sampler_is_exact_speculation(policy):
    assert policy.bind().config.method == "speculative"
    assert policy.bind() is policy.bind(SamplerConfig(method="speculative"))
    out = policy.predict_action(tiny_obs(), generator=seeded())
    assert (out.sample.stats.calls < 100).all()


def test_previous_plan_is_shifted_by_the_executed_steps(policy):
    seen = {}

    class Spy:
        schedule = policy.bind(DDPM).schedule

        def __call__(self, denoise, noise, *, generator=None, warm_start=None, draft=None, inpaint=None):
            seen["warm_start"] = warm_start
            return policy.bind(DDPM)(denoise, noise, generator=generator)

    plan = torch.randn(3, 16, 10)
    plan[1] = float("nan")
    policy.predict_action(tiny_obs(), sampler=Spy(), previous_plan=plan)
    warm = seen["warm_start"]
    assert torch.equal(warm[0, :8], plan[0, 8:])
    assert torch.equal(warm[2, 8:], plan[2, -1:].expand(8, 10))
    assert warm[1].isnan().all()
    policy.predict_action(tiny_obs(), sampler=Spy())
    assert seen["warm_start"] is None


def test_denoiser_gathers_conditions_by_chain(policy):
    condition = policy.encode(tiny_obs())
    denoise = policy.denoiser(condition)
    x, t, chain = torch.randn(4, 16, 10), torch.tensor([3, 99, 0, 50]), torch.tensor([2, 0, 0, 1])
    torch.testing.assert_close(denoise(x, t, chain), policy.network(x, t, condition[chain]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o.pop("object"), "lack object; expected keys: object, robot0_eef_pos, robot0_eef_quat"),
        (lambda o: o.update(image=np.zeros(1)), "have unknown image; expected keys"),
        (lambda o: o.update(object=o["object"][:, :1]), r"'object' must be \(B, 2, 10\), got \(3, 1, 10\)"),
        (lambda o: o.update(object=o["object"][0]), r"'object' must be \(B, 2, 10\), got \(2, 10\)"),
        (lambda o: o.update(object=o["object"][:0]), r"'object' must be \(B, 2, 10\), got \(0, 2, 10\)"),
        (
            lambda o: o.update(robot0_eef_quat=o["robot0_eef_quat"][..., :3]),
            r"'robot0_eef_quat' must be \(3, 2, 4\), got \(3, 2, 3\)",
        ),
        (
            lambda o: o.update(robot0_eef_pos=o["robot0_eef_pos"][:2]),
            r"'robot0_eef_pos' must be \(3, 2, 3\), got \(2, 2, 3\)",
        ),
        (lambda o: o["robot0_eef_pos"].__setitem__((1, 0, 2), np.nan), r"'robot0_eef_pos' holds NaN.*\[1, 0, 2\]"),
        (lambda o: o["object"].__setitem__((0, 1, 9), np.inf), r"'object' holds NaN or infinity.*\[0, 1, 9\]"),
        (lambda o: o["object"].__setitem__((0, 1, 9), 1e300), r"'object' holds NaN or infinity \(as float32\)"),
        (lambda o: o.update(object=np.array([["a"]])), "'object' is not an array of numbers"),
        (lambda o: o.update(object=o["object"] > 0), "'object' must hold real numbers, got torch.bool"),
        (lambda o: o.update(object=o["object"] + 1j), "'object' must hold real numbers"),
    ],
)
def test_bad_observations_are_refused_before_anything_is_drawn(policy, change, message):
    obs = tiny_obs()
    change(obs)
    generator = seeded()
    before = generator.get_state()
    with pytest.raises(ObservationError, match=message):
        policy.predict_action(obs, generator=generator)
    assert torch.equal(generator.get_state(), before)


def test_observations_that_are_no_mapping(policy):
    with pytest.raises(ObservationError, match="must be a mapping"):
        policy.encode(np.zeros((1, 2, 19)))


def test_wrong_noise_and_plan(policy):
    with pytest.raises(ValueError, match=r"noise must be \(B, T, D\) = \(3, 16, 10\), got \(1, 16, 10\)"):
        policy.predict_action(tiny_obs(), noise=torch.zeros(1, 16, 10))
    with pytest.raises(ValueError, match=r"noise must be \(B, T, D\) = \(3, 16, 10\), got \(1, 16, 10\)"):
        policy.predict_action(tiny_obs(), noise=draw_noise((1, 16, 10), policy.bind().schedule))
    with pytest.raises(ValueError, match=r"previous_plan must be \(B, T, D\) = \(3, 16, 10\), got \(3, 8, 10\)"):
        policy.predict_action(tiny_obs(), previous_plan=torch.zeros(3, 8, 10))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gains_move_with_the_policy():
    stored = Gains(G=torch.zeros(100, 160, 160), timesteps=torch.arange(99, -1, -1)).state_dict()
    policy = tiny_policy(speculation=stored).to("cuda")
    assert policy.bind().drafter.gains.G.device.type == "cuda"
    assert policy.predict_action(tiny_obs()).action.device.type == "cuda"


def test_missing_statistics(policy):
    params = {k: v for k, v in policy.normalizer.params.items() if k != "robot0_eef_quat"}
    with pytest.raises(NormalizationError, match="no normalisation statistics for 'robot0_eef_quat'"):
        DiffusionPolicy(policy.config, policy.network, LinearNormalizer(params), policy.scheduler_config)
