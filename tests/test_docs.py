"""The documentation site builds without a warning, and says what there is."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest
import yaml

import diffpolicy_spec
from diffpolicy_spec import SamplerConfig
from diffpolicy_spec.eval.resolve import known_samplers, resolve_samplers

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
EVERYTHING = "\n".join(PAGES.values())


@functools.cache
def site() -> dict[str, str]:
    """Path -> HTML of the site, built as `make docs` builds it: a warning is an error."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
        built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        # --quiet would hide warnings from --strict.
        assert built.returncode == 0, built.stderr
        assert not re.search("^(WARNING|ERROR)", built.stderr, re.MULTILINE), built.stderr
        return {p.relative_to(folder).as_posix(): p.read_text() for p in Path(folder).rglob("*.html")}


def test_every_public_name_has_its_place_on_the_api_page():
    html = site()["api.html"]
    missing = [name for name in diffpolicy_spec.__all__ if f'id="diffpolicy_spec.{name}"' not in html]
    assert not missing, f"add `::: diffpolicy_spec.<name>` to docs/api.md for {', '.join(missing)}"


def test_every_package_with_a_public_interface_is_on_the_api_page():
    html = site()["api.html"]
    packages = ("policies", "checkpoints", "data", "training", "envs", "eval", "coupling", "control", "server", "ros")
    for package in packages:
        assert f'id="diffpolicy_spec.{package}.' in html, package


def test_pages_load_nothing_from_the_network():
    for name, html in site().items():
        loaded = re.findall(r'<(?:script|img|link|iframe)\b[^>]*?(?:src|href)="((?:https?:)?//[^"]+)"', html)
        assert not loaded, f"{name}: {loaded}"


def test_formulas_in_docstrings_are_text_and_not_tags():
    assert "2 &lt;e, xi&gt; e" in site()["api.html"]


def test_the_navigation_lists_every_page_once():
    def leaves(entry) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [leaf for part in (entry.values() if isinstance(entry, dict) else entry) for leaf in leaves(part)]

    listed = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(listed) == sorted(PAGES)


def test_every_console_script_is_named():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert [name for name in scripts if f"`{name}" not in EVERYTHING and f"## {name}\n" not in EVERYTHING] == []


def test_every_sampler_configuration_is_listed():
    assert [name for name in known_samplers() if f"<code>{name}</code>" not in site()["commands.html"]] == []


def test_every_stored_result_is_shown():
    def text(html: str) -> str:
        return "".join(re.sub(r"<[^>]+>|&\w+;", "", html).split())

    shown = text(site()["measured.html"])
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.md")):
        lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
        cells = [cell.strip() for line in lines for cell in line.split("|")]
        words = [cell for cell in cells if re.fullmatch(r"[\w .,+%-]{3,}", cell) and not set(cell) <= set("-: ")]
        missing = [cell for cell in words if "".join(cell.split()) not in shown]
        assert words, f"{path.name} has no table"
        assert not missing, f"{path.name}: {missing}"
    for path in (ROOT / "benchmarks" / "results").glob("*.png"):
        assert f'src="{path.name}"' in site()["measured.html"], path.name


def test_files_that_are_named_exist():
    named = set(re.findall(r"(?:`|python )((?:benchmarks|tests|configs|docs)/[\w./]+\.\w+)", EVERYTHING))
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("text", sorted(set(re.findall(r"`(SamplerConfig\([^`]*\))`", EVERYTHING))))
def test_sampler_configs_of_the_pages_are_accepted(text: str):
    assert isinstance(eval(text, {"SamplerConfig": SamplerConfig}), SamplerConfig)


COMMANDS = sorted(set(re.findall(r"dps-eval '?(samplers?=\[[^'`\n]*\]|sampler=\w+)", EVERYTHING)))


@pytest.mark.parametrize("text", COMMANDS)
def test_dps_eval_commands_of_the_pages_name_samplers_that_there_are(text: str):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    value = OverridesParser.create().parse_override(text).value()
    samplers = resolve_samplers({"samplers": [value] if isinstance(value, str) else value, "sampler": None})
    for sampler in samplers:
        options = {key: value for key, value in sampler["options"].items() if value is not None}
        SamplerConfig(sampler["method"], sampler["num_inference_steps"], sampler["eta"], options)


def test_python_examples_of_the_start_page_run():
    import torch

    policy = diffpolicy_spec.load_policy("lift")
    names = {
        "torch": torch,
        "obs": {key: torch.zeros(1, 2, d) for key, d in policy.config.obs_dims.items()},
        "my_ddpm_scheduler": policy.scheduler_config,
        "denoise": lambda x, t, chain: torch.zeros_like(x),
    }
    blocks = re.findall(r"```python\n(.*?)```", PAGES["index.md"], re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    assert names["out"]["action"].shape == (1, 8, 10)
    assert names["sample"].x0.shape == (1, 16, 10)
