"""Fixtures of robomimic's diffusion policies: its config, data set, statistics, algorithm and `save_model`.

robomimic builds its U-Net with fixed sizes. So that the files are small, all but one fixture were made with other
defaults of that class's arguments (`meta["unet"]`).
"""

from __future__ import annotations

import copy
import functools
import json
import sys
from pathlib import Path
from typing import Any

import draws
import h5py
import numpy as np
import torch
from fixture import Fixture, allow_torchvision, versions
from observations import images, vectors
from torch import Tensor
from weights import doubled, fill, fit_readout

allow_torchvision()

import robomimic.models.diffusion_policy_nets as DPNets  # noqa: E402
import robomimic.utils.file_utils as FileUtils  # noqa: E402
import robomimic.utils.obs_utils as ObsUtils  # noqa: E402
import robomimic.utils.tensor_utils as TensorUtils  # noqa: E402
import robomimic.utils.train_utils as TrainUtils  # noqa: E402
from robomimic.algo import RolloutPolicy, algo_factory  # noqa: E402
from robomimic.config import config_factory  # noqa: E402
from robomimic.scripts.extract_action_dict import extract_action_dict  # noqa: E402

LOW_DIM = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
OBJECT = {**LOW_DIM, "object": 10}
RESNET = {
    "feature_dimension": 64,
    "backbone_class": "ResNet18Conv",
    "backbone_kwargs": {"pretrained": False, "input_coord_conv": False},
    "pool_class": "SpatialSoftmax",
    "pool_kwargs": {"num_kp": 32, "learnable_temperature": False, "temperature": 1.0, "noise_std": 0.0},
}
ROT6D = {
    "action_dict/abs_pos": {"normalization": "min_max"},
    "action_dict/abs_rot_6d": {"normalization": None, "format": "rot_6d", "convert_at_runtime": "rot_axis_angle"},
    "action_dict/gripper": {"normalization": "min_max"},
}
DDIM = {"ddpm.enabled": False, "ddim.enabled": True}

# name -> low-dimensional keys, cameras, config values (below algo, or train.*)
CASES: dict[str, tuple[dict[str, int], dict[str, tuple[int, int, int]], dict[str, Any]]] = {
    "robomimic_lowdim": (OBJECT, {}, {"train.hdf5_normalize_obs": True}),
    "robomimic_no_ema": (
        {"object": 14, "robot0_eef_pos": 3},
        {},
        {"ema.enabled": False, "train.action_config": {"actions": {"normalization": "gaussian"}},
         "ddpm.clip_sample": False, "ddpm.prediction_type": "sample"},
    ),
    "robomimic_ddim": (OBJECT, {}, DDIM),
    "robomimic_rot6d": (OBJECT, {}, {"train.action_config": ROT6D}),
    "robomimic_image": (
        LOW_DIM,
        {"robot0_eye_in_hand_image": (3, 40, 40), "agentview_image": (3, 40, 40)},
        {"crop": 36, "horizon.prediction_horizon": 8, "horizon.action_horizon": 4},
    ),
    "robomimic_full_size": (OBJECT, {}, {"unet": "robomimic's"}),
}  # fmt: skip
# robomimic's own sizes, for compare.py.
PUBLISHED: dict[str, tuple[dict[str, int], dict[str, tuple[int, int, int]], dict[str, Any]]] = {
    "published_robomimic_lowdim": (OBJECT, {}, {"unet": "robomimic's"}),
}


def observations(
    low_dim: dict[str, int], cameras: dict[str, Any], batch: int, steps: int, seed: int
) -> dict[str, Tensor]:
    """(batch, steps, d) and images (batch, steps, C, H, W) uint8."""
    out = {key: vectors(size, batch, steps, seed + i) for i, (key, size) in enumerate(low_dim.items())}
    return out | {key: images(shape, batch, steps, seed + 50 + i) for i, (key, shape) in enumerate(cameras.items())}


def write_dataset(path: Path, low_dim: dict[str, int], cameras: dict[str, Any]) -> None:
    """Random demonstrations in robomimic's format."""
    with h5py.File(path, "w") as f:
        data = f.create_group("data")
        env = {
            "env_name": "Lift",
            "type": 1,
            "env_version": "1.5.1",
            "env_kwargs": {"robots": ["Panda"], "control_freq": 20},
        }
        data.attrs["env_args"] = json.dumps(env)
        for i in range(4):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = 12
            for key, value in observations(low_dim, cameras, 12, 1, seed=400 + 10 * i).items():
                array = value[:, 0].numpy()
                demo[f"obs/{key}"] = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
            demo["actions"] = vectors(7, 12, 1, 500 + i, low=-0.95, high=0.8)[:, 0].double().numpy()
            demo["actions_abs"] = 1.3 * demo["actions"][:]
            demo["rewards"], demo["dones"] = np.zeros(12), np.zeros(12, dtype=np.int64)
    extract_action_dict(str(path))


def make_config(name: str, dataset: Path) -> Any:
    """robomimic's default config of the algorithm with the case's values."""
    low_dim, cameras, values = (CASES | PUBLISHED)[name]
    config = config_factory("diffusion_policy")
    with config.unlocked():
        config.experiment.name = name
        config.train.data = [{"path": str(dataset)}]
        config.train.cuda = False
        config.observation.modalities.obs.low_dim = list(low_dim)
        config.observation.modalities.obs.rgb = list(cameras)
        if cameras:
            config.observation.encoder.rgb.core_kwargs = copy.deepcopy(RESNET)
            config.observation.encoder.rgb.obs_randomizer_class = "CropRandomizer"
            crop = {"crop_height": values["crop"], "crop_width": values["crop"], "num_crops": 1, "pos_enc": False}
            config.observation.encoder.rgb.obs_randomizer_kwargs = crop
        if "train.action_config" in values:
            config.train.action_config = values["train.action_config"]
            config.train.action_keys = list(values["train.action_config"])
        config.train.hdf5_normalize_obs = values.get("train.hdf5_normalize_obs", False)
        for key, value in values.items():
            if "." in key and not key.startswith("train."):
                group, field = key.split(".")
                config.algo[group][field] = value
        config.train.seq_length = config.algo.horizon.prediction_horizon
        config.train.frame_stack = config.algo.horizon.observation_horizon
    config.lock()
    return config


def networks(algo: Any) -> Any:
    """What the policy is used with."""
    return (algo.ema.averaged_model if algo.ema is not None else algo.nets)["policy"]


def set_weights(algo: Any) -> None:
    """Fill the networks; with an average, `nets` are others that are not to be used."""
    used = networks(algo)
    fill(algo.nets["policy"], "not the average")
    fill(used, "robomimic")
    net, horizon = used["noise_pred_net"], algo.algo_config.horizon
    size = used["obs_encoder"].output_shape()[0] * horizon.observation_horizon

    def call(x: Tensor, t: Tensor) -> Tensor:
        cond = 0.5 * torch.randn((len(x), size), generator=torch.Generator().manual_seed(int(t.sum())))
        return net(x, t, global_cond=cond)

    fast = {} if sum(p.numel() for p in net.parameters()) < 1e7 else {"calls": 16, "batch": 8}
    shape = (horizon.prediction_horizon, algo.ac_dim)
    prediction = algo.noise_scheduler.config.prediction_type
    spread = 0.3 if prediction == "epsilon" else 1.0
    fit_readout(call, net.final_conv[1], algo.noise_scheduler.alphas_cumprod, shape, prediction, spread, **fast)


@torch.no_grad()
def chunk(fixture: Fixture, rollout: RolloutPolicy, obs: dict[str, Tensor]) -> None:
    """Run the policy in robomimic's way, one environment after the other, until its queue of actions is empty."""
    algo, horizon = rollout.policy, rollout.policy.algo_config.horizon
    scheduler, policy = algo.noise_scheduler, networks(algo)
    arrays = {k: v.movedim(2, -1).numpy() if v.dtype == torch.uint8 else v.numpy() for k, v in obs.items()}
    rollout.start_episode()
    normalized = rollout._prepare_observation(dict(arrays), batched_ob=True)
    inputs = {"obs": {k: normalized[k] for k in algo.obs_shapes}, "goal": None}
    features = TensorUtils.time_distributed(inputs, policy["obs_encoder"], inputs_as_kwargs=True)
    fixture.add("obs", obs)
    fixture.add("normalized", normalized)
    fixture.add("features", features)

    states: list[Tensor] = []
    step = scheduler.step

    def keep(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        states.append(result.prev_sample)
        return result

    deterministic = type(scheduler).__name__ == "DDIMScheduler"
    starts, innovations, plans, used, errors = [], [], [], [], []
    cond = features.flatten(1)
    for b in range(len(cond)):
        rollout.start_episode()
        scheduler.step = keep
        states.clear()
        with draws.RecordedDraws(seed=11 + b) as recorded:
            env_actions = [rollout({k: v[b] for k, v in arrays.items()}) for _ in range(horizon.action_horizon)]
        scheduler.step = step
        start, steps = recorded.noise(len(states), deterministic)
        if len(states) != len(scheduler.timesteps):
            raise AssertionError(f"{len(states)} sampling steps in a chunk of {len(scheduler.timesteps)}")
        starts.append(start)
        innovations.append(steps)
        plans.append(states[-1].clone())
        used.append(torch.from_numpy(np.stack(env_actions)))
        errors.append(in_double(algo, {k: v[b : b + 1] for k, v in normalized.items()}, recorded.drawn) - plans[-1])
    start, steps, plan = torch.cat(starts), torch.cat(innovations, dim=1), torch.cat(plans)
    fixture.add("noise", {"start": start, "steps": steps})
    action_pred = unnormalize(rollout, plan)
    first = horizon.observation_horizon - 1
    action = action_pred[:, first : first + horizon.action_horizon]
    expected = {"action": action, "action_pred": action_pred, "plan": plan, "env_action": torch.stack(used)}
    fixture.add("expected", expected)
    x, t = start * 0.75, torch.tensor([61, 3, 40][: len(start)])
    out = policy["noise_pred_net"](x, t, global_cond=cond)
    fixture.add("network", {"x": x, "t": t, "global_cond": cond, "out": out})
    fixture.meta["precision"] = {"float32_to_float64_max": float(f"{torch.cat(errors).abs().max():.2g}")}


def in_double(algo: Any, normalized: dict[str, Tensor], drawn: list[Tensor]) -> Tensor:
    """The same plan, computed in float64."""
    policy = doubled(networks(algo))
    inputs = {"obs": {k: normalized[k].double() for k in algo.obs_shapes}, "goal": None}
    cond = TensorUtils.time_distributed(inputs, policy["obs_encoder"], inputs_as_kwargs=True).flatten(1)
    with draws.RecordedDraws(again=drawn):
        x = torch.randn(drawn[0].shape, dtype=torch.float64)
        for t in algo.noise_scheduler.timesteps:
            x = algo.noise_scheduler.step(policy["noise_pred_net"](x, t, global_cond=cond), t, x).prev_sample
    return x


def unnormalize(rollout: RolloutPolicy, plan: Tensor) -> Tensor:
    """(B, T, Da) by robomimic's statistics, key by key in the order of train.action_keys; no rotation is converted."""
    stats, parts, at = rollout.action_normalization_stats, [], 0
    for key in rollout.policy.global_config.train.action_keys:
        size = stats[key]["offset"].shape[-1]
        part = ObsUtils.unnormalize_dict({key: plan[..., at : at + size].flatten(0, 1).numpy()}, stats)[key]
        parts.append(torch.from_numpy(part).reshape(*plan.shape[:2], size))
        at += size
    return torch.cat(parts, dim=-1)


def facts(algo: Any, config: Any, unet: dict[str, Any]) -> dict[str, Any]:
    """meta.json of a policy of robomimic."""
    kind = "ddpm" if config.algo.ddpm.enabled else "ddim"
    return {
        "project": "robomimic",
        "commit": "d309eae",
        "license": "MIT",
        "class": f"{type(algo).__module__}.{type(algo).__name__}",
        "versions": {"robomimic": "0.5.0", **versions("diffusers", "h5py")},
        "checkpoint": "checkpoint.pth",
        "weights": "ema" if algo.ema is not None else "nets",
        "unet": unet or "robomimic's own sizes",
        "images": "uint8 (To, H, W, C)" if config.observation.modalities.obs.rgb else None,
        "settings": {
            "horizon": config.algo.horizon.prediction_horizon,
            "n_obs_steps": config.algo.horizon.observation_horizon,
            "n_action_steps": config.algo.horizon.action_horizon,
            "num_inference_steps": config.algo[kind].num_inference_timesteps,
            "clip_sample_range": 1.0,
            "action_dim": algo.ac_dim,
            "action_keys": list(config.train.action_keys),
        },
    }


def make(name: str, folder: Path) -> None:
    """Build, save and run one policy, by the steps of robomimic's scripts/train.py."""
    low_dim, cameras, values = (CASES | PUBLISHED)[name]
    unet = {} if "unet" in values else {"down_dims": [16, 32], "diffusion_step_embed_dim": 32}
    folder.mkdir(parents=True, exist_ok=True)
    dataset = folder.with_suffix(".hdf5")
    write_dataset(dataset, low_dim, cameras)
    config = make_config(name, dataset)
    ObsUtils.initialize_obs_utils_with_config(config)
    env_meta = FileUtils.get_env_metadata_from_dataset(dataset_path=str(dataset))
    shape_meta = FileUtils.get_shape_metadata_from_dataset(
        dataset_config=config.train.data[0], action_keys=config.train.action_keys, all_obs_keys=config.all_obs_keys
    )
    trainset, _ = TrainUtils.load_data_for_training(config, obs_keys=shape_meta["all_obs_keys"])
    obs_stats = trainset.get_obs_normalization_stats() if config.train.hdf5_normalize_obs else None
    action_stats = trainset.get_action_normalization_stats()
    with config.values_unlocked():
        for k in config.algo.optim_params:
            config.algo.optim_params[k]["num_train_batches"] = 100
            config.algo.optim_params[k]["num_epochs"] = config.train.num_epochs

    whole = DPNets.ConditionalUnet1D
    DPNets.ConditionalUnet1D = functools.partial(whole, **unet)
    algo = algo_factory(
        config.algo_name, config, obs_key_shapes=shape_meta["all_shapes"], ac_dim=shape_meta["ac_dim"], device="cpu"
    )
    DPNets.ConditionalUnet1D = whole
    algo.set_eval()
    set_weights(algo)
    with config.values_unlocked():
        config.train.data = [{"path": "lift/ph/low_dim.hdf5"}]
    TrainUtils.save_model(
        algo, config, env_meta, shape_meta, str(folder / "checkpoint.pth"), variable_state={"epoch": 40},
        obs_normalization_stats=obs_stats, action_normalization_stats=action_stats,
    )  # fmt: skip
    fixture = Fixture(folder, facts(algo, config, unet))
    obs = observations(low_dim, cameras, 2, config.algo.horizon.observation_horizon, seed=600)
    chunk(fixture, RolloutPolicy(algo, obs_stats, action_stats), obs)
    fixture.write()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in CASES | PUBLISHED:
        if name in sys.argv[2:]:
            make(name, Path(sys.argv[1]) / name)
