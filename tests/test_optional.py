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


def test_a_missing_h5py_names_the_extra(tmp_path):
    code = """
import sys
sys.modules["h5py"] = None  # what an import finds where it is not installed
from diffpolicy_spec.data import read_robomimic
try:
    read_robomimic("x.hdf5", {})
except ImportError as error:
    assert "pip install 'diffpolicy-spec[data]'" in str(error), error
else:
    raise SystemExit("no error")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
