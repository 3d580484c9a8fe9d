"""Importing the core is light: torch and numpy only; the control loop needs numpy only."""

import json
import subprocess
import sys

HEAVY = ("diffusers", "hydra", "omegaconf", "gymnasium", "robosuite", "mujoco", "h5py", "zarr", "matplotlib", "imageio",
         "safetensors", "tqdm", "scipy", "pytest")  # fmt: skip


def modules_after(code: str) -> set[str]:
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    return {name.split(".")[0] for name in json.loads(out.splitlines()[-1])}


def test_import_pulls_in_torch_and_numpy_only():
    before = modules_after("import torch, numpy")
    core = modules_after("import diffpolicy_spec as dps\ndps.sample_speculative, dps.calibrate, dps.bind") - before
    assert core == {"diffpolicy_spec"}, core


def test_the_package_alone_and_the_control_loop_import_without_torch():
    assert "torch" not in modules_after("import diffpolicy_spec")
    new = modules_after("import diffpolicy_spec.control") - modules_after("import numpy, diffpolicy_spec")
    assert not new & {*HEAVY, "torch"}, new


def test_every_public_name_is_there():
    import diffpolicy_spec as dps

    assert set(dps.__all__) <= set(dir(dps))
    assert all(getattr(dps, name) is not None for name in dps.__all__)


def test_the_sampler_runs_with_torch_and_numpy_alone():
    before = modules_after("import torch, numpy")  # torch brings tqdm where there is one
    loaded = modules_after(
        "import torch, diffpolicy_spec as dps\n"
        "s = dps.Schedule.from_diffusers({'num_train_timesteps': 20, 'prediction_type': 'sample'})\n"
        "dps.sample_speculative(lambda x, t, chain: 0 * x, s, torch.randn(2, 4, 3))"
    )
    assert not (loaded - before) & set(HEAVY)
