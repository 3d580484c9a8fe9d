"""Policies with cameras: encoded once a chunk, checked before anything is drawn."""

import numpy as np
import pytest
import torch
from tiny_policy import CAMERAS, TRANSFORMER, obs_for, tiny_policy

from diffpolicy_spec import RuntimeConfig, SamplerConfig
from diffpolicy_spec.policies import DiffusionPolicy, EncoderConfig, NormalizationError, ObservationError, UnetConfig
from diffpolicy_spec.policies.normalizer import LinearNormalizer

SPECULATIVE = SamplerConfig(num_inference_steps=20, options={"drafter": "nearest", "window": 8})
ORDER = ("robot0_eef_pos", "wrist", "object", "robot0_eef_quat", "front", "robot0_gripper_qpos")


@pytest.fixture(scope="module")
def policy():
    return tiny_policy(**CAMERAS, feature_order=ORDER)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_features_are_joined_in_the_configs_order(policy):
    obs = obs_for(policy.config)
    features = policy.features(dict(reversed(obs.items())))
    assert features.shape == (3, 2, 19 + 2 * 6) == (3, 2, policy.config.obs_dim)
    images = {k: 2 * torch.as_tensor(obs[k]) - 1 for k in policy.config.image_shapes}
    encoded = policy.encoder(images)
    expected = []
    for key in ORDER:
        value = encoded.get(key)
        if value is None:
            value = policy.normalizer.normalize(key, torch.as_tensor(obs[key], dtype=torch.float32))
        expected.append(value)
    torch.testing.assert_close(features, torch.cat(expected, dim=-1))
    assert torch.equal(policy.encode(obs), features.flatten(1))


def test_bytes_are_taken_for_images(policy):
    obs = obs_for(policy.config)
    pixels = {k: (255 * obs[k]).astype(np.uint8) for k in policy.config.image_shapes}
    floats = {k: v.astype(np.float32) / 255 for k, v in pixels.items()}
    torch.testing.assert_close(policy.encode(obs | pixels), policy.encode(obs | floats))
    torch.testing.assert_close(policy.encode(obs | {k: torch.as_tensor(v) for k, v in pixels.items()}),
                               policy.encode(obs | floats))  # fmt: skip


@pytest.mark.parametrize("mode", ["eager", "static"])
@pytest.mark.parametrize("changes", [{}, {"conditioning": "inpainting"}, TRANSFORMER], ids=["unet", "inp", "trans"])
def test_the_encoder_runs_once_a_chunk(changes, mode):
    policy = tiny_policy(**CAMERAS, **changes).use(RuntimeConfig(mode))
    runs = []
    policy.encoder.register_forward_hook(lambda *_: runs.append(1))
    for chunks, batch in enumerate((1, 3), 1):
        out = policy.predict_action(obs_for(policy.config, batch), sampler=policy.bind(SPECULATIVE), generator=seeded())
        assert len(runs) == chunks
        assert (out.sample.stats.calls > 1).all()
        assert out.action.shape == (batch, 8, 10)


def test_the_law_depends_on_the_images(policy):
    obs = obs_for(policy.config)
    other = obs | {"front": 1 - obs["front"]}
    first, second = (policy.predict_action(o, generator=seeded()).plan for o in (obs, other))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o.pop("front"), "lack front; expected keys: robot0_eef_pos, wrist, object"),
        (lambda o: o.update(side=o["front"]), "have unknown side"),
        (
            lambda o: o.update(front=np.moveaxis(o["front"], 2, -1)),
            r"'front' must be \(3, 2, 3, 40, 40\), got \(3, 2, 40, 40, 3\) \(channels come before height and width\)",
        ),
        (lambda o: o.update(wrist=o["wrist"][:, :, :, :20]), r"'wrist' must be \(3, 2, 3, 38, 40\), got"),
        (lambda o: o.update(front=o["front"][:2]), r"'front' must be \(3, 2, 3, 40, 40\), got \(2, 2, 3, 40, 40\)"),
        (lambda o: o.update(front=255 * o["front"]), r"'front' must be float in \[0, 1\], or uint8: .* to 25\d"),
        (lambda o: o.update(front=2 * o["front"] - 1), r"'front' must be float in \[0, 1\], or uint8: .* from -"),
        (lambda o: o.update(front=(255 * o["front"]).astype(np.int64)), r"'front' must be uint8 .*got torch.int64"),
        (lambda o: o["front"].__setitem__((0, 1, 2, 3, 4), np.nan), "'front' hold NaN or infinity"),
        (lambda o: o["wrist"].__setitem__((0, 1, 2, 3, 4), np.inf), "'wrist' hold NaN or infinity"),
        (lambda o: o["object"].__setitem__((0, 1, 2), np.nan), r"'object' holds NaN.*\[0, 1, 2\]"),
        (lambda o: o.update(front=o["front"] > 0.5), "'front' must hold real numbers"),
    ],
)
def test_bad_images_are_refused_before_anything_is_drawn(policy, change, message):
    obs, generator = obs_for(policy.config), seeded()
    change(obs)
    before = generator.get_state()
    with pytest.raises(ObservationError, match=message):
        policy.predict_action(obs, generator=generator)
    assert torch.equal(generator.get_state(), before)


def test_images_a_little_out_of_range_are_fine(policy):
    """As resampling with negative lobes leaves them."""
    obs = obs_for(policy.config)
    assert torch.isfinite(policy.encode(obs | {"front": 1.1 * obs["front"] - 0.05})).all()


def test_cameras_alone():
    cameras = {"image_shapes": {"front": (1, 33, 40)}, "encoder": EncoderConfig(keypoints=4, features=6)}
    policy = tiny_policy(obs_dims={}, **cameras)
    assert policy.config.condition_dim == 2 * 6
    assert policy.predict_action(obs_for(policy.config, 2), generator=seeded()).action.shape == (2, 8, 10)


def test_crops_at_random_in_use_are_drawn_from_the_chains_generators():
    encoder = EncoderConfig(crop=(36, 36), keypoints=4, features=6, random_crop_in_use=True)
    policy = tiny_policy(image_shapes={"front": (3, 48, 48)}, encoder=encoder)
    obs = obs_for(policy.config)
    first, again, other = (policy.encode(obs, seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    sampler = policy.bind(SPECULATIVE)
    together = policy.predict_action(obs, sampler=sampler, generator=[seeded(i) for i in range(3)])
    alone = policy.predict_action({k: v[1:2] for k, v in obs.items()}, sampler=sampler, generator=[seeded(1)])
    torch.testing.assert_close(alone.plan, together.plan[1:2], rtol=1e-3, atol=1e-4)


def test_cameras_need_statistics_and_an_encoder(policy):
    params = policy.normalizer.params
    given = policy.config, policy.network
    few = LinearNormalizer({k: v for k, v in params.items() if k != "front"})
    with pytest.raises(NormalizationError, match="no normalisation statistics for 'front'"):
        DiffusionPolicy(*given, few, policy.scheduler_config, encoder=policy.encoder)
    pixels = LinearNormalizer({**params, "front": {"scale": torch.ones(1), "offset": torch.zeros(1)}})
    with pytest.raises(NormalizationError, match="'front' has 1 dimensions, expected 3"):
        DiffusionPolicy(*given, pixels, policy.scheduler_config, encoder=policy.encoder)
    with pytest.raises(ValueError, match="an encoder is for cameras, and the config's are: front, wrist"):
        DiffusionPolicy(*given, policy.normalizer, policy.scheduler_config)
    blind = tiny_policy(unet=UnetConfig((8,), diffusion_step_embed_dim=8))
    with pytest.raises(ValueError, match="the config's are: none"):
        DiffusionPolicy(blind.config, blind.network, blind.normalizer, blind.scheduler_config, encoder=policy.encoder)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_encoder_moves_with_the_policy():
    policy = tiny_policy(**CAMERAS).to("cuda")
    assert policy.predict_action(obs_for(policy.config)).action.device.type == "cuda"
