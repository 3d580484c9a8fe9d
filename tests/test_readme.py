"""README's tables are the stored results, nothing else."""

import importlib.util
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def readme_program():
    sys.path.insert(0, str(ROOT / "benchmarks"))  # where its tables come from
    spec = importlib.util.spec_from_file_location("readme_program", ROOT / "benchmarks" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_those_of_the_result_files():
    program, text = readme_program(), (ROOT / "README.md").read_text()
    names = re.findall(r"<!-- table: (\w+)[\w:, ]* -->", text)
    assert names
    assert set(names) <= set(program.stored_tables())
    assert program.fill(text, program.stored_tables()) == text


def test_files_that_readme_names_exist():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"\]\(((?:docs|benchmarks)/[\w./]+)\)|`((?:benchmarks|tests|configs)/[\w/]+\.\w+)`", text):
        assert (ROOT / (path[0] or path[1])).exists(), path


def test_python_example_runs():
    """The block of README, with its placeholders filled."""
    import torch

    import diffpolicy_spec as dps

    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    policy = dps.load_policy("lift")
    observations = {key: torch.zeros(1, 2, d) for key, d in policy.config.obs_dims.items()}
    block = block.replace("{key: ...}", "observations").replace("import diffpolicy_spec as dps", "")
    names = {"dps": dps, "torch": torch, "observations": observations, "my_ddpm_scheduler": policy.scheduler_config,
             "denoise": policy.denoiser(policy.encode(observations))}  # fmt: skip
    exec(block, names)
    assert names["out"]["action"].shape == (1, 8, 10)
    assert names["sample"].x0.shape == (1, 16, 10)
