"""`accelerate` on the real policies of LeRobot, diffusion_policy and robomimic, where they can be imported.

CI does not have them. With the environment that tools/upstream/setup.sh makes in DIR, and pytest in it, one command for
each project, from this folder, with this repository as R:

    run="DIR/venv/bin/python -m pytest -c /dev/null test_accelerate_upstream.py"
    PYTHONPATH=R $run -k lerobot
    PYTHONPATH=R:DIR/diffusion_policy:DIR/robomimic-0.2.0 $run -k dp
    PYTHONPATH=R:DIR/diffusers-0.11.1:DIR/robomimic $run -k robomimic
"""

from __future__ import annotations

import copy
import functools
import importlib
import pickle
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import torch

import diffpolicy_spec as dps
from diffpolicy_spec.policies.inference.transformer import InferenceTransformer
from diffpolicy_spec.policies.inference.unet import InferenceUnet

B, DA, DO, TO, TA, T = 2, 3, 5, 2, 4, 8
SMALL = {"diffusion_step_embed_dim": 16, "down_dims": (16, 32)}
_LIBRARY: list[Any] = []


def upstream(name: str) -> Any:
    """A module of one of the three projects, or the test is skipped. torchvision's wheel is built for CUDA: beside a
    torch for CPUs it wants two operators declared that nobody calls."""
    if not _LIBRARY and not hasattr(torch.ops.torchvision, "nms"):
        _LIBRARY.append(torch.library.Library("torchvision", "DEF"))
        for operator in ("nms", "qnms"):
            _LIBRARY[0].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    if importlib.util.find_spec(name.split(".")[0]) is None:
        pytest.skip(f"{name} is not installed here")
    try:
        return importlib.import_module(name)
    except ImportError as error:  # another project's release of robomimic, or of diffusers
        pytest.skip(f"{name}: {error}")


def scheduler(kind: str = "DDPM", **settings):
    diffusers = upstream("diffusers")
    return getattr(diffusers, f"{kind}Scheduler")(
        num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", clip_sample=True, **settings
    )


def finish(policy, **data):
    """Statistics by upstream's own fit, evaluation mode."""
    normalizer = upstream("diffusion_policy.model.common.normalizer")
    fitted = normalizer.LinearNormalizer()
    fitted.fit(data={key: value.numpy() for key, value in data.items()}, last_n_dims=1)
    policy.set_normalizer(fitted)
    return policy.eval()


def rows(n: int, size: int, seed: int = 0):
    return 2 * torch.randn(n, size, generator=torch.Generator().manual_seed(seed)) + 0.5


def dp_unet(sched=None, steps=None, **how):
    module = upstream("diffusion_policy.policy.diffusion_unet_lowdim_policy")
    network = upstream("diffusion_policy.model.diffusion.conditional_unet1d").ConditionalUnet1D
    glob, local = how.get("obs_as_global_cond"), how.get("obs_as_local_cond")
    net = network(
        DA if glob or local else DA + DO, local_cond_dim=DO if local else None,
        global_cond_dim=TO * DO if glob else None, cond_predict_scale=bool(glob), **SMALL,
    )  # fmt: skip
    policy = module.DiffusionUnetLowdimPolicy(
        net, sched or scheduler(), T, DO, DA, TA, TO, num_inference_steps=steps, **how
    )
    return finish(policy, obs=rows(50, DO), action=rows(50, DA, 1))


def dp_transformer(**how):
    module = upstream("diffusion_policy.policy.diffusion_transformer_lowdim_policy")
    network = upstream("diffusion_policy.model.diffusion.transformer_for_diffusion").TransformerForDiffusion
    D, cond = (DA, DO) if how.get("obs_as_cond") else (DA + DO, 0)
    layers = how.pop("layers", 0)
    net = network(D, D, T, TO, cond, n_layer=2, n_head=2, n_emb=32, causal_attn=bool(cond), n_cond_layers=layers)
    policy = module.DiffusionTransformerLowdimPolicy(net, scheduler(), T, DO, DA, TA, TO, **how)
    return finish(policy, obs=rows(50, DO), action=rows(50, DA, 1))


SHAPES = {
    "action": {"shape": [DA]},
    "obs": {"agentview_image": {"shape": [3, 40, 40], "type": "rgb"}, "robot0_eef_pos": {"shape": [3]}},
}


def finish_image(policy):
    normalizer = upstream("diffusion_policy.model.common.normalizer")
    image = upstream("diffusion_policy.common.normalize_util").get_image_range_normalizer()
    fitted = normalizer.LinearNormalizer()
    for key, size in (("action", DA), ("robot0_eef_pos", 3)):
        fitted[key] = normalizer.SingleFieldLinearNormalizer.create_fit(rows(50, size).numpy())
    fitted["agentview_image"] = image
    policy.set_normalizer(fitted)
    return policy.eval()


def dp_hybrid_unet(**how):
    module = upstream("diffusion_policy.policy.diffusion_unet_hybrid_image_policy")
    policy = module.DiffusionUnetHybridImagePolicy(
        SHAPES, scheduler(), T, TA, TO, crop_shape=(36, 36), obs_encoder_group_norm=True, eval_fixed_crop=True,
        **SMALL, **how,
    )  # fmt: skip
    return finish_image(policy)


def dp_hybrid_transformer(**how):
    module = upstream("diffusion_policy.policy.diffusion_transformer_hybrid_image_policy")
    policy = module.DiffusionTransformerHybridImagePolicy(
        SHAPES, scheduler(), T, TA, TO, crop_shape=(36, 36), obs_encoder_group_norm=True, eval_fixed_crop=True,
        n_layer=2, n_head=2, n_emb=32, **how,
    )  # fmt: skip
    return finish_image(policy)


def dp_image(**how):
    module = upstream("diffusion_policy.policy.diffusion_unet_image_policy")
    vision = upstream("diffusion_policy.model.vision.multi_image_obs_encoder")
    resnet = upstream("diffusion_policy.model.vision.model_getter").get_resnet("resnet18")
    encoder = vision.MultiImageObsEncoder(SHAPES, resnet, crop_shape=(36, 36), random_crop=False, use_group_norm=True)
    return finish_image(module.DiffusionUnetImagePolicy(SHAPES, scheduler(), encoder, T, TA, TO, **SMALL, **how))


def lerobot(images: bool = False, **settings):
    types = upstream("lerobot.configs.types")
    config = upstream("lerobot.policies.diffusion.configuration_diffusion").DiffusionConfig
    inputs = {
        "observation.state": types.PolicyFeature(types.FeatureType.STATE, (DO,)),
        "observation.environment_state": types.PolicyFeature(types.FeatureType.ENV, (4,)),
    }
    if images:
        inputs["observation.images.top"] = types.PolicyFeature(types.FeatureType.VISUAL, (3, 40, 40))
    made = config(
        input_features=inputs, output_features={"action": types.PolicyFeature(types.FeatureType.ACTION, (DA,))},
        horizon=T, n_action_steps=TA, drop_n_last_frames=1, crop_shape=(36, 36), spatial_softmax_num_keypoints=8,
        device="cpu", push_to_hub=False, **SMALL, **settings,
    )  # fmt: skip
    return upstream("lerobot.policies.diffusion.modeling_diffusion").DiffusionPolicy(made).eval()


def robomimic(ema: bool = True, ddim: bool = False):
    algos, configs = upstream("robomimic.algo"), upstream("robomimic.config")
    if "diffusion_policy" not in algos.algo.REGISTERED_ALGO_FACTORY_FUNCS:
        pytest.skip("this robomimic has no diffusion policy")
    utils = upstream("robomimic.utils.obs_utils")
    config = configs.config_factory("diffusion_policy")
    with config.unlocked():
        config.train.cuda = False
        config.observation.modalities.obs.low_dim = ["object", "robot0_eef_pos"]
        config.observation.modalities.obs.rgb = []
        config.algo.ema.enabled = ema
        config.algo.ddpm.enabled, config.algo.ddim.enabled = not ddim, ddim
        for params in config.algo.optim_params.values():
            params["num_train_batches"], params["num_epochs"] = 10, 10
    config.lock()
    utils.initialize_obs_utils_with_config(config)
    shapes = {"object": [7], "robot0_eef_pos": [3]}
    nets = upstream("robomimic.models.diffusion_policy_nets")
    with pytest.MonkeyPatch.context() as patch:  # its sizes cannot be set: 65 M parameters
        patch.setattr(nets, "ConditionalUnet1D", functools.partial(nets.ConditionalUnet1D, **SMALL))
        algo = algos.algo_factory("diffusion_policy", config, obs_key_shapes=shapes, ac_dim=DA, device="cpu")
    algo.set_eval()
    return algos.RolloutPolicy(algo)


MAKERS = {
    "dp unet global": (lambda: dp_unet(obs_as_global_cond=True), InferenceUnet),
    "dp unet local": (lambda: dp_unet(obs_as_local_cond=True), None),
    "dp unet inpainting": (dp_unet, InferenceUnet),
    "dp unet steps only": (lambda: dp_unet(obs_as_global_cond=True, pred_action_steps_only=True), InferenceUnet),
    "dp unet sample": (lambda: dp_unet(scheduler(prediction_type="sample"), obs_as_global_cond=True), InferenceUnet),
    "dp transformer": (lambda: dp_transformer(obs_as_cond=True), InferenceTransformer),
    "dp transformer inpainting": (dp_transformer, InferenceTransformer),
    "dp transformer encoder": (lambda: dp_transformer(obs_as_cond=True, layers=1), None),
    "dp hybrid unet": (dp_hybrid_unet, InferenceUnet),
    "dp hybrid unet inpainting": (lambda: dp_hybrid_unet(obs_as_global_cond=False), InferenceUnet),
    "dp hybrid transformer": (dp_hybrid_transformer, InferenceTransformer),
    "dp image": (dp_image, InferenceUnet),
    "lerobot": (lerobot, InferenceUnet),
    "lerobot images": (lambda: lerobot(images=True), InferenceUnet),
    "lerobot few steps": (lambda: lerobot(num_inference_steps=20, clip_sample_range=2.0), InferenceUnet),
    "lerobot plain film": (lambda: lerobot(use_film_scale_modulation=False), InferenceUnet),
    "robomimic": (robomimic, InferenceUnet),
    "robomimic without ema": (lambda: robomimic(ema=False), InferenceUnet),
}
DETERMINISTIC = {
    "dp ddim": lambda: dp_unet(scheduler("DDIM"), 10, obs_as_global_cond=True),
    "lerobot ddim": lambda: lerobot(noise_scheduler_type="DDIM", num_inference_steps=10),
    "robomimic ddim": lambda: robomimic(ddim=True),
}
every = pytest.mark.parametrize("name", MAKERS)


@torch.no_grad()
def chunk(policy, seed: int = 5):
    """Actions of one chunk, through the policy's own front door."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.rand(shape, generator=generator)

    if hasattr(policy, "start_episode"):
        policy.start_episode()
        obs = {"object": draw(TO, 7).numpy(), "robot0_eef_pos": draw(TO, 3).numpy()}
        return torch.from_numpy(
            np.stack([policy(obs) for _ in range(policy.policy.algo_config.horizon.action_horizon)])
        )
    if hasattr(policy, "select_action"):
        policy.reset()
        batch = {key: draw(B, *feature.shape) for key, feature in policy.config.input_features.items()}
        return torch.stack([policy.select_action(dict(batch)) for _ in range(TA)], dim=1)
    if hasattr(policy, "obs_encoder"):
        return policy.predict_action({"agentview_image": draw(B, TO, 3, 40, 40), "robot0_eef_pos": draw(B, TO, 3)})[
            "action_pred"
        ]
    return policy.predict_action({"obs": draw(B, TO, DO)})["action_pred"]


def owner(policy):
    return getattr(policy, "diffusion", getattr(policy, "policy", policy))


def close(a, b) -> bool:
    """Equal to 1e-5, of the largest number where numbers are large. In diffusers before 0.12 the last step's
    beta_0 / (1 - abar_0), which is 1, is off by 1e-5 in float32, and x0 with it."""
    old = version("diffusers").split(".")[:2] < ["0", "12"]
    return float((a - b).abs().max()) < (1e-4 if old else 1e-5) * max(1.0, float(b.abs().max()))


@every
def test_the_same_seed_gives_upstreams_chunk(name: str):
    make, layout = MAKERS[name]
    torch.manual_seed(0)
    policy = make()
    own = chunk(policy)
    assert dps.accelerate(policy, "ddpm") is policy
    ours = chunk(policy)
    assert close(ours, own), float((ours - own).abs().max())
    network = vars(owner(policy))["_diffpolicy_spec_sampler"]._runner[1]._network
    assert layout is None or isinstance(network, layout)
    assert policy.last_sample_stats.calls[0] == policy.last_sample_stats.num_steps
    assert torch.equal(chunk(dps.decelerate(policy)), own)


@every
def test_the_default_sampler_takes_few_calls(name: str):
    torch.manual_seed(0)
    policy = dps.accelerate(MAKERS[name][0]())
    first = chunk(policy)
    stats = policy.last_sample_stats
    assert (stats.calls < stats.num_steps * 0.7).all(), stats.calls
    assert close(chunk(policy), first)
    policy = dps.accelerate(policy, runtime=dps.RuntimeConfig("static"))
    assert chunk(policy).shape == first.shape


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_chains(name: str):
    policy = DETERMINISTIC[name]()
    own = chunk(policy)
    with pytest.raises(dps.AccelerateError, match="nothing random"):
        dps.accelerate(policy)
    assert close(chunk(dps.accelerate(policy, "ddim")), own)
    chunk(dps.accelerate(policy, "speculative"))
    assert policy.last_sample_stats.num_steps == 100


@every
def test_copies_pickles_and_state_dicts(name: str, tmp_path):
    policy = MAKERS[name][0]()
    module = policy.policy.nets if hasattr(policy, "start_episode") else policy
    names = list(module.state_dict())
    own = chunk(dps.accelerate(policy, "ddpm"))
    assert list(module.state_dict()) == names
    twin = copy.deepcopy(policy)
    assert close(chunk(twin), own)
    assert twin.last_sample_stats is not None
    if "robomimic" in name or "hybrid" in name:
        return  # robomimic's Config, which they hold, cannot be pickled
    restored = pickle.loads(pickle.dumps(policy))
    assert not hasattr(restored, "last_sample_stats")
    assert close(chunk(restored), own)
    if hasattr(policy, "save_pretrained"):
        policy.save_pretrained(tmp_path)
        assert close(chunk(type(restored).from_pretrained(tmp_path)), own)


@pytest.mark.parametrize("name", ["dp unet global", "dp transformer", "lerobot", "robomimic"])
def test_weights_that_change_are_seen(name: str):
    policy = dps.accelerate(MAKERS[name][0](), "ddpm")
    before = chunk(policy)
    target = owner(policy)
    if name == "robomimic":
        network = target.ema.averaged_model["policy"]["noise_pred_net"]
    else:
        network = getattr(target, "unet", None) or target.model
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(1.3)
    after = chunk(policy)
    assert not close(after, before)
    assert close(chunk(dps.decelerate(policy)), after)


def test_lerobot_with_a_compiled_network_and_under_inference_mode():
    policy = lerobot()
    own = chunk(policy)
    policy.diffusion.unet = torch.compile(policy.diffusion.unet)  # nothing is compiled before it is called
    dps.accelerate(policy, "ddpm")
    with torch.inference_mode():
        assert close(chunk(policy), own)
    assert close(chunk(policy), own)


def test_training_mode_of_lerobot_is_left_alone():
    policy = dps.accelerate(lerobot())
    policy.train()
    chunk(policy)
    assert policy.training


def test_dp_transformer_in_training_mode_is_refused():
    policy = dps.accelerate(dp_transformer(obs_as_cond=True)).train()
    with pytest.raises(dps.AccelerateError, match="training mode"):
        chunk(policy)
