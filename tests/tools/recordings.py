"""A robomimic hdf5 with everything that robomimic's scripts write: states, rewards, images, masks, env_args."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

ENV_ARGS = {
    "env_name": "Lift",
    "env_version": "1.5.1",
    "type": 1,
    "env_kwargs": {"robots": ["Panda"], "controller_configs": {"type": "OSC_POSE", "control_delta": True}},
}


def write_everything(path: Path, lengths=(9, 14, 6), *, images=True, next_obs=False, seed=0) -> Path:
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(lengths)
        data.attrs["env_args"] = json.dumps(ENV_ARGS)
        for i, n in enumerate(lengths):
            group = data.create_group(f"demo_{i}")
            group.attrs["num_samples"] = n
            group.attrs["model_file"] = f"<mujoco>{'<body/>' * 400}<!-- {i} --></mujoco>"
            group.attrs["seed"] = i + 100
            group["actions"] = rng.uniform(-1, 1, (n, 7))
            group["states"] = rng.normal(size=(n, 32))
            group["rewards"] = np.r_[np.zeros(n - 1), 1.0]
            group["dones"] = np.r_[np.zeros(n - 1, int), 1]
            group["action_dict/abs_pos"] = rng.normal(size=(n, 3)).astype("f4")
            obs = {"object": 10, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
            for key, d in obs.items():
                group[f"obs/{key}"] = rng.normal(size=(n, d))
                if next_obs:
                    group[f"next_obs/{key}"] = rng.normal(size=(n, d))
            if images:
                shape = (n, 12, 10, 3)
                group.create_dataset("obs/agentview_image", data=rng.integers(0, 255, shape, "u1"), compression="gzip")
        names = np.array([f"demo_{i}" for i in range(len(lengths))], dtype="S")
        file["mask/train"], file["mask/valid"] = names[:-1], names[-1:]
    return path


def contents(path: Path) -> dict[str, tuple]:
    """Everything in an hdf5 file, by name: values, types and attributes."""
    found: dict[str, tuple] = {}

    def visit(name, item):
        attributes = tuple(sorted((k, str(v)) for k, v in item.attrs.items()))
        values = (item.dtype.str, item.shape, item[()].tobytes()) if isinstance(item, h5py.Dataset) else ()
        found[name] = (attributes, values)

    with h5py.File(path) as file:
        file.visititems(visit)
    return found
