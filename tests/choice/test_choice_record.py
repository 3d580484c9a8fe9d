"""The stored choice: written whole, read back, refused when damaged, bound by sampler=auto."""

import dataclasses
import json
import warnings

import pytest
import torch
from tiny_policy import SCHEDULER, tiny_obs, tiny_policy

from diffpolicy_spec import SamplerConfig, bind, load_policy
from diffpolicy_spec.checkpoints import CheckpointError
from diffpolicy_spec.choice.record import (
    Choice,
    ChoiceError,
    processor,
    read_choices,
    resolve_auto,
    with_choice,
    write_choices,
)  # fmt: skip
from diffpolicy_spec.choice.report import sentence, table
from diffpolicy_spec.runtime import RuntimeConfig

CPU = torch.device("cpu")
ONE = RuntimeConfig(threads=1)
ROW = {
    "name": "nearest", "window": "5", "method": "speculative", "options": {"drafter": "nearest", "window": 5},
    "calls": 7.5, "rows": 30.0, "overhead_ms_per_round": 0.5, "predicted_ms": 9.0, "measured_ms": 9.5,
    "measured_ms_p95": 12.0, "measured_calls": 7.0, "runtime": {"mode": "eager", "threads": 1},
}  # fmt: skip
SEQUENTIAL = ROW | {"name": "sequential", "method": "sequential", "options": {}, "predicted_ms": 28.0}


def policy_with(*choices):
    policy = tiny_policy()
    policy.choices = choices
    return policy


def choice(**changes):
    values = {
        "device": "cpu", "processor": processor(), "torch": torch.__version__, "weights": "0123456789abcdef",
        "num_inference_steps": None, "eta": None, "name": "nearest", "method": "speculative",
        "options": {"drafter": "nearest", "window": 5}, "runtime": ONE, "calls": 7.5, "rows": 30.0, "latency_ms": 9.5,
        "latency_ms_p95": 12.0, "sequential_ms": 30.0, "call_cost_ms": {"eager, 1 thread": {"1": 0.3, "8": 0.5}},
        "candidates": (ROW, SEQUENTIAL),
    }  # fmt: skip
    return Choice(**values | changes)


def test_there_and_back(tmp_path):
    stored = (choice(), choice(device="GPU", options={"drafter": "picard", "window": [3] * 100}))
    write_choices(stored, tmp_path)
    assert read_choices(tmp_path) == stored
    assert [p.name for p in tmp_path.iterdir()] == ["speculation.json"]  # nothing temporary is left
    assert read_choices(tmp_path / "nowhere") == ()


def test_a_new_choice_replaces_the_one_of_its_device_and_chain():
    old, other_device, other_chain = choice(), choice(device="GPU"), choice(num_inference_steps=20)
    new = choice(calls=3.0)
    assert with_choice((old, other_device, other_chain), new) == (other_device, other_chain, new)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "truncated or damaged"),
        (lambda text: "\xff\xfe", "cannot be read"),
        (lambda text: "[]", "not of format"),
        (lambda text: text.replace('"version": 2', '"version": 1'), "version 2"),
        (lambda text: text.replace('"choices"', '"chosen"'), "does not describe choices: 'choices'"),
        (lambda text: text.replace('"weights"', '"masses"'), "masses.*missing or beside"),
        (lambda text: text.replace('"mode": "eager"', '"mode": "eagre"'), "unknown runtime mode 'eagre'"),
        (lambda text: text.replace('"threads": 1', '"fibres": 1'), "'fibres'"),
        (lambda text: text.replace('"method": "speculative"', '"method": "ddim"'), "method 'ddim' is none of"),
        (lambda text: text.replace('"drafter"', '"drafted"'), "unknown options for speculative: drafted"),
        (lambda text: text.replace('"calls": 7.5', '"calls": NaN'), "calls is nan, not a number"),
        (lambda text: text.replace('"latency_ms": 9.5', '"latency_ms": "9"'), "latency_ms is '9', not a number"),
    ],
)
def test_a_damaged_file_is_refused_with_what_to_do(tmp_path, damage, message):
    policy_with(choice()).save(tmp_path / "p")
    file = tmp_path / "p" / "speculation.json"
    file.write_bytes(damage(file.read_text()).encode("latin-1"))
    with pytest.raises(ChoiceError, match=message) as caught:
        read_choices(tmp_path / "p")
    assert "speculation.json" in str(caught.value)
    assert "run dps-calibrate again" in str(caught.value)
    with pytest.raises(CheckpointError, match="dps-calibrate"):
        load_policy(tmp_path / "p")


def test_auto_is_the_stored_choice():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = resolve_auto(SamplerConfig("auto"), [choice(device="GPU"), choice()], CPU)
        assert config == SamplerConfig("speculative", options={"drafter": "nearest", "window": 5}, runtime=ONE)
        slow = choice(method="sequential", options={})
        assert resolve_auto(SamplerConfig("auto"), [slow], CPU) == SamplerConfig("ddpm", runtime=ONE)
        respaced = choice(num_inference_steps=20, eta=0.5, method="sequential", options={})
        assert resolve_auto(SamplerConfig("auto", 20, 0.5), [respaced], CPU) == SamplerConfig(
            "ddim", 20, 0.5, runtime=ONE
        )
        # A runtime that is asked for goes before the one that was found quickest.
        static = RuntimeConfig("static")
        config = resolve_auto(SamplerConfig("auto", runtime=static), [choice()], CPU)
        assert (config.runtime, config.options["window"]) == (static, 5)
        assert resolve_auto(SamplerConfig("auto", eta=0.0, runtime=static), [], CPU).runtime == static
        tree = choice(method="tree", options={"children": 2, "depth": 3})
        assert resolve_auto(SamplerConfig("auto"), [tree], CPU).method == "tree"
        # Without noise there is nothing to speculate and nothing to choose.
        assert resolve_auto(SamplerConfig("auto", 10, 0.0), [], CPU) == SamplerConfig("ddim", 10, 0.0)


@pytest.mark.parametrize(
    ("stored", "asked", "named"),
    [
        ([], SamplerConfig("auto"), "stored: none"),
        ([choice(device="NVIDIA X")], SamplerConfig("auto"), r"stored: NVIDIA X \(all steps\)"),
        ([choice()], SamplerConfig("auto", 20), r"for cpu, 20 steps \(stored: cpu \(all steps\)\)"),
        ([choice()], SamplerConfig("auto", eta=0.5), "for cpu, all steps, eta 0.5"),
    ],
)
def test_without_a_stored_choice_the_default_is_used_with_a_warning(stored, asked, named):
    with pytest.warns(UserWarning, match=f"{named}.*dps-calibrate"):
        config = resolve_auto(asked, stored, CPU)
    assert config == SamplerConfig("speculative", asked.num_inference_steps, asked.eta)


@pytest.mark.parametrize(
    ("then", "named"),
    [
        ({"torch": "1.0"}, "torch 1.0"),
        ({"processor": "Z80"}, "processor Z80"),
        ({"weights": "0"}, "other weights, gains or draft network"),
    ],
)
def test_a_choice_made_under_other_conditions_is_used_with_a_warning(then, named):
    with pytest.warns(UserWarning, match=f"measured with {named}.*dps-calibrate again"):
        config = resolve_auto(SamplerConfig("auto"), [choice(**then)], CPU, choice().weights)
    assert config.options["window"] == 5


def test_a_policy_binds_what_was_chosen(tmp_path):
    policy_with(choice()).save(tmp_path / "p")
    policy = load_policy(tmp_path / "p")
    assert policy.choices == (choice(),)
    bound = policy.bind(SamplerConfig("auto"))
    assert bound.config == SamplerConfig("speculative", options={"drafter": "nearest", "window": 5}, runtime=ONE)
    stats = policy.predict_action(tiny_obs(1), sampler=bound).sample.stats
    assert int(stats.evaluations.max()) <= 5 * int(stats.calls.max())
    step_by_step = policy_with(choice(method="sequential", options={})).bind(SamplerConfig("auto"))
    assert step_by_step.config.method == "ddpm"


def test_without_a_policy_there_is_nothing_to_choose_from():
    with pytest.raises(ValueError, match=r"policy\.bind"):
        bind(SamplerConfig("auto"), SCHEDULER)
    with pytest.raises(ValueError, match="unknown options for auto: window; known: none"):
        SamplerConfig("auto", options={"window": 3})


def test_an_unknown_policy_binds_the_default_and_warns_once():
    policy = tiny_policy()
    with pytest.warns(UserWarning, match="dps-calibrate"):
        bound = policy.bind(SamplerConfig("auto"))
    assert bound.config == SamplerConfig("speculative")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert policy.bind(SamplerConfig("auto")) is bound


def test_the_report_says_what_to_expect():
    said = sentence(choice())
    assert "sampler=auto is nearest, window 5, run eager, 1 thread: expects 7.5 calls, 30 rows and 9.5 ms" in said
    assert "sequential 30.0 ms, 3.2 times as long" in said
    by_step = dataclasses.replace(choice(), options={"drafter": "nearest", "window": [2, 9, 4]})
    assert "windows of 2 to 9 rows by step" in sentence(by_step)
    assert "sampler=auto is sequential" in sentence(choice(method="sequential", options={}))
    lines = table(choice()).splitlines()
    assert lines[2] == "| nearest | 5 | eager, 1 thread | 7.5 | 30 | 0.50 | 9.0 | 9.5 | 12.0 |"
    assert "sequential" in table(choice(), limit=1)  # never left out
    assert "| 8 | 0.50 |" in lines


def test_the_file_is_plain_json(tmp_path):
    write_choices([choice()], tmp_path)
    content = json.loads((tmp_path / "speculation.json").read_text())
    assert content["choices"][0]["device"] == "cpu"
    assert content["choices"][0]["options"] == {"drafter": "nearest", "window": 5}
