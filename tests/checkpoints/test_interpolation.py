"""Interpolations are resolved as OmegaConf resolves them; nothing in a config runs."""

from __future__ import annotations

import builtins
import copy
import os
from typing import Any

import pytest

from diffpolicy_spec.checkpoints.diffusion_policy.arithmetic import calculate
from diffpolicy_spec.checkpoints.diffusion_policy.interpolation import resolve
from diffpolicy_spec.checkpoints.errors import CheckpointError

# What diffusion_policy's own configs hold, abridged.
PUBLISHED: dict[str, Any] = {
    "name": "train_diffusion_unet_lowdim",
    "obs_dim": "${task.obs_dim}",
    "action_dim": "${task.action_dim}",
    "horizon": 16,
    "n_obs_steps": 2,
    "n_action_steps": 8,
    "n_latency_steps": 0,
    "obs_as_local_cond": False,
    "obs_as_global_cond": True,
    "policy": {
        "model": {
            "input_dim": "${eval: ${task.action_dim} if ${obs_as_local_cond} or ${obs_as_global_cond} "
            "else ${task.obs_dim} + ${task.action_dim}}",
            "local_cond_dim": "${eval: ${task.obs_dim} if ${obs_as_local_cond} else None}",
            "global_cond_dim": "${eval: ${task.obs_dim}*${n_obs_steps} if ${obs_as_global_cond} else None}",
            "down_dims": [256, 512, 1024],
            "output_dim": "${policy.model.input_dim}",
        },
        "n_action_steps": "${eval:'${n_action_steps}+${n_latency_steps}'}",
        "shape_meta": "${task.shape_meta}",
    },
    "task": {
        "name": "square_lowdim",
        "obs_dim": 23,
        "action_dim": 10,
        "dataset_type": "mh",
        "shape_meta": {"obs": {"image": {"shape": [3, 84, 84], "type": "rgb"}}, "action": {"shape": [2]}},
        "env_runner": {
            "max_steps": '${eval:\'500 if "${task.dataset_type}" == "mh" else 400\'}',
            "pad_before": "${eval:'${n_obs_steps}-1+${n_latency_steps}'}",
        },
    },
    "channels": "${task.shape_meta.obs.image.shape[0]}",
    "width": "${policy.shape_meta.obs.image.shape.2}",
    "logging": {"tags": ["${name}", "${..other}"], "other": 3, "deep": {"up": "${..other}", "beside": "${.up}"}},
    "path": "data/${task.name}/${task.dataset_type}_${horizon}",
    "indirect": "${task.${what}}",
    "what": "name",
    "select": {
        "there": "${oc.select:task.name,lift}",
        "not": "${oc.select:task.nothing,ph}",
        "none": "${oc.select:no}",
    },
}


def test_published_configs() -> None:
    before = copy.deepcopy(PUBLISHED)
    config = resolve(PUBLISHED)
    assert before == PUBLISHED
    assert config["policy"]["model"] == {
        "input_dim": 10, "local_cond_dim": None, "global_cond_dim": 46, "down_dims": [256, 512, 1024], "output_dim": 10,
    }  # fmt: skip
    assert config["policy"]["n_action_steps"] == 8
    assert config["policy"]["shape_meta"] == PUBLISHED["task"]["shape_meta"]
    assert config["task"]["env_runner"] == {"max_steps": 500, "pad_before": 1}
    assert (config["channels"], config["width"]) == (3, 84)
    assert config["logging"] == {"tags": [config["name"], 3], "other": 3, "deep": {"up": 3, "beside": 3}}
    assert (config["path"], config["indirect"]) == ("data/square_lowdim/mh_16", "square_lowdim")
    assert config["select"] == {"there": "square_lowdim", "not": "ph", "none": None}
    assert resolve(PUBLISHED, "policy.model.input_dim") == 10


def test_agrees_with_omegaconf() -> None:
    """The same resolvers registered in OmegaConf itself give the same values."""
    omegaconf = pytest.importorskip("omegaconf")
    other: dict[str, Any] = {"a": "x${b}y\\${c}", "b": 1.5, "l": ["${b}", {"k": "${l[0]}", "r": "${.k}"}]}
    omegaconf.OmegaConf.register_new_resolver("eval", eval, replace=True)
    try:
        for config in (PUBLISHED, other):
            theirs = omegaconf.OmegaConf.to_container(omegaconf.OmegaConf.create(config), resolve=True)
            assert resolve(config) == theirs
    finally:
        omegaconf.OmegaConf.clear_resolver("eval")


@pytest.mark.parametrize("text", ["${now:%Y.%m.%d}", "${hydra:runtime.cwd}", "${oc.env:HOME}", "${mine:1,${a}}"])
def test_other_resolvers_stay_text(text: str) -> None:
    assert resolve({"a": 1, "b": text}) == {"a": 1, "b": text}
    assert resolve({"a": 1, "b": text + "_${a}"})["b"] == text + "_1"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2+8-1", 9), ("7//2*2", 6), ("7/2", 3.5), ("7%4", 3), ("-(1+2)*+3", -9), ("2**10", 1024), ("1.5e-3", 0.0015),
        ("1 if True and not False else 2", 1), ("0 or 3", 3), ("0 and 3", 0), ("None is None", True),
        ("'ph' == \"mh\"", False), ("'a'+'b'", "ab"), ("1 < 2 <= 2 != 3", True), ("3 > 4 >= 5", False),
    ],
)  # fmt: skip
def test_arithmetic(text: str, value: Any) -> None:
    assert (calculate(text), type(calculate(text))) == (value, type(value))


HOSTILE = [
    "__import__('os').system('touch PATH')", "open('PATH','w')", "().__class__", "[1][0]", "print", "(lambda: 1)()",
    "[x for x in (1,)]", "f'{1}'", "9**9**9", "10**64*10**64", "'a'*10**9", "1 in (1,)", "1 << 99", "x := 1", "1/0",
    "(" * 400 + ")" * 400, "1+", "", "b'a'", "1j", "...", "-'a'", "'a' < 1", "{}", "1+" * 600 + "1", "0x" + "f" * 900,
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_but_arithmetic(text: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(*_: Any, **__: Any) -> None:
        raise AssertionError("the expression was run")

    text = text.replace("PATH", str(tmp_path / "ran"))
    with monkeypatch.context() as patch:
        for module, name in ((os, "system"), (builtins, "eval"), (builtins, "exec"), (builtins, "__import__")):
            patch.setattr(module, name, ran)
        with pytest.raises(CheckpointError, match="is not worked out"):
            calculate(text)
    assert not list(tmp_path.iterdir())


def test_the_place_of_a_bad_expression_is_named() -> None:
    config = {"policy": {"n": "${eval:'open(\"x\")'}"}, "fine": 1}
    with pytest.raises(CheckpointError, match=r"policy\.n.*more than arithmetic, and nothing of it was run"):
        resolve(config)
    assert resolve(config, "fine") == 1  # what is not asked for is not resolved


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"a": "${b}", "b": "${a}"}, "refers to itself: .*a -> b -> a"),
        ({"a": {"b": "${a}"}}, "refers to itself"),
        ({"a": "${a}"}, "refers to itself"),
        ({"a": "${nothing.there}"}, "has no 'nothing.there', to which 'a' refers"),
        ({"a": "${...x}"}, "beyond its root"),
        ({"a": "${b"}, "without an end"),
        ({"a": "x${b}", "b": {"c": 1}}, "writes a dict into the text"),
        ({f"k{i}": f"${{k{i + 1}}}" for i in range(100)}, "on and on"),
        ({"k0": "0" * 100, **{f"k{i}": f"${{k{i - 1}}}${{k{i - 1}}}" for i in range(1, 45)}}, "text without end"),
        ({"k0": [1] * 100, **{f"k{i}": [f"${{k{i - 1}}}"] * 2 for i in range(1, 45)}}, "unfolds"),
        ({"a": "${oc.select:x,}" * 200_000}, "unfolds"),
        ({"a": "${" * 2000 + "}" * 2000}, "nests"),
    ],
)  # fmt: skip
def test_configs_without_an_end(config: dict[str, Any], match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        resolve(config)


def test_many_empty_texts_take_no_time() -> None:
    assert resolve({"a": "${e}" * 40_000, "e": ""}, "a") == ""
