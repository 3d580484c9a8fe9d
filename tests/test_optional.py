"""Optional modules: imported where they are used, and a missing one names the extra."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffpolicy_spec.optional import require

# Not tqdm: torch itself imports it.
HEAVY = ("robosuite", "mujoco", "gymnasium", "h5py", "zarr", "hydra", "omegaconf", "diffusers", "matplotlib")


def test_require():
    assert require("json", extra="data") is sys.modules["json"]
    assert require("os.path", extra="data").join("a", "b")
    message = r"reading needs no_such_thing.*pip install 'diffpolicy-spec\[data\]'"
    with pytest.raises(ImportError, match=message) as error:
        require("no_such_thing.part", extra="data", needed_by="reading")
    assert isinstance(error.value.__cause__, ImportError)


def test_using_a_policy_needs_torch_numpy_and_safetensors_only():
    """Loading and saving a checkpoint, encoding observations and sampling import none of the optional modules."""
    code = f"""
import sys, tempfile
import diffpolicy_spec.policies, diffpolicy_spec.checkpoints, diffpolicy_spec.data, diffpolicy_spec.training
from tiny_policy import tiny_obs, tiny_policy
with tempfile.TemporaryDirectory() as folder:
    tiny_policy().save(folder + "/p")
    diffpolicy_spec.load_policy(folder + "/p").predict_action(tiny_obs())
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "extra", "use"),
    [
        ("h5py", "data", "from diffpolicy_spec.data import read_robomimic; read_robomimic('x.hdf5', {})"),
        ("zarr", "data", "from diffpolicy_spec.data import read_replay_buffer; read_replay_buffer('x.zarr', {})"),
        ("gymnasium", "sim", "import diffpolicy_spec.envs"),
        ("gym_pusht", "pusht", "from diffpolicy_spec.envs import make_env; make_env('pusht')"),
        ("mujoco", "pusht", "from diffpolicy_spec.envs import make_env; make_env('pusht_mujoco')"),
        ("gymnasium_robotics", "kitchen", "from diffpolicy_spec.envs import make_env; make_env('kitchen')"),
        ("mujoco", "sim", "from diffpolicy_spec.envs import make_env; make_env('lift')"),
        ("robosuite", "sim", "from diffpolicy_spec.envs import make_env; make_env('lift')"),
        ("hydra", "sim", "from diffpolicy_spec.envs.collect import main; main()"),
        ("hydra", "eval", "from diffpolicy_spec.eval.cli import main; main()"),
        ("hydra", "train", "from diffpolicy_spec.training.cli import main; main()"),
        ("hydra", "train", "from diffpolicy_spec.training.calibrate import main; main()"),
        ("scipy", "eval", "from diffpolicy_spec.eval.comparison import mcnemar; mcnemar(1, 2)"),
        ("matplotlib", "eval", "from diffpolicy_spec.eval.plots import figure; figure(1, 1)"),
    ],
)
def test_a_missing_module_names_the_extra(module, extra, use):
    code = f"""
import sys
sys.modules["{module}"] = None  # what an import finds where it is not installed
try:
    {use}
except ImportError as error:
    assert "needs {module}" in str(error), error
    assert "pip install 'diffpolicy-spec[{extra}]'" in str(error), error
else:
    raise SystemExit("no error")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
