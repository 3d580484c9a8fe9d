"""Checkpoints whose settings or tensors are not what they should be: configs, JSON files, safetensors files."""

from __future__ import annotations

import functools
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Made = tuple[str, str, Callable[[Path], Path]]
Change = Callable[[dict[str, Any]], Any]

NAN = float("nan")


def settings_cases(valid: dict[str, Path]) -> Iterator[Made]:
    """(format, name, make)."""
    yield from _configs(valid["dp"])
    yield from _json(valid)
    yield from _tensors(valid)
    if "robomimic" in valid:
        yield from _robomimic(valid["robomimic"])


@functools.cache
def payload(path: Path) -> dict[str, Any]:
    """A pickled checkpoint as plain data, its tensors loaded."""
    from diffpolicy_spec.checkpoints.pickles import StoredTensor, read_pickled

    def loaded(value: Any) -> Any:
        if isinstance(value, StoredTensor):
            return value.load()
        if isinstance(value, dict):
            return {key: loaded(item) for key, item in value.items()}
        return value

    read = read_pickled(path)
    for name in ("optimizer", "optimizers"):
        read.get("state_dicts", {}).pop(name, None)
    return loaded(read)


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, dict) else value


def _set(*path_and_value: Any) -> Change:
    """Set an item of nested mappings."""
    *path, last, value = path_and_value

    def change(data: dict[str, Any]) -> None:
        for name in path:
            data = data[name]
        data[last] = value

    return change


def _drop(*path: str) -> Change:
    def change(data: dict[str, Any]) -> None:
        for name in path[:-1]:
            data = data[name]
        del data[path[-1]]

    return change


def _nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = {"a": value}
    return value


def _configs(whole: Path) -> Iterator[Made]:
    """diffusion_policy's cfg, its interpolations, its state dict."""
    billion = {f"n{i}": [f"${{n{i + 1}}}"] * 9 for i in range(12)} | {"n12": "lol"}
    state, weight = ("state_dicts", "ema_model"), "model.final_conv.1.weight"
    changes: dict[str, Change] = {
        "a cycle": lambda d: (
            d["cfg"].update(horizon="${ns}", ns="${horizon}") or d["cfg"]["policy"].update(horizon="${horizon}")
        ),
        "refers to itself": _set("cfg", "horizon", "${horizon}"),
        "a reference to nothing": _set("cfg", "policy", "horizon", "${no.such.key}"),
        "a reference of nothing": _set("cfg", "policy", "horizon", "${}"),
        "an open brace": _set("cfg", "policy", "horizon", "${horizon"),
        "a thousand braces": _set("cfg", "policy", "horizon", "${" * 1000 + "}" * 1000),
        "a billion laughs": lambda d: (d["cfg"].update(billion), d["cfg"]["policy"].update(horizon="${n0}")),
        "eval: import": _set("cfg", "policy", "horizon", '${eval:\'__import__("os").system("touch canary")\'}'),
        "eval: open": _set("cfg", "policy", "horizon", '${eval:\'open("canary", "w")\'}'),
        "eval: attributes": _set("cfg", "policy", "horizon", "${eval:'().__class__.__bases__[0].__subclasses__()'}"),
        "eval: lambda": _set("cfg", "policy", "horizon", "${eval:'(lambda: 16)()'}"),
        "eval: powers": _set("cfg", "policy", "horizon", "${eval:'9**9**9**9'}"),
        "eval: a long product": _set("cfg", "policy", "horizon", "${eval:'" + "*".join(["999999999"] * 5000) + "'}"),
        "eval: shifts": _set("cfg", "policy", "horizon", "${eval:'1 << 999999999'}"),
        "eval: repeats text": _set("cfg", "policy", "horizon", "${eval:'\"a\" * 999999999'}"),
        "eval: 0 / 0": _set("cfg", "policy", "horizon", "${eval:'0 / 0'}"),
        "eval: nested deep": _set("cfg", "policy", "horizon", "${eval:'" + "(" * 5000 + "1" + ")" * 5000 + "'}"),
        "eval: minus minus": _set("cfg", "policy", "horizon", "${eval:'" + "-" * 50000 + "1'}"),
        "eval: not Python": _set("cfg", "policy", "horizon", "${eval:'16 16'}"),
        "oc.env": _set("cfg", "policy", "horizon", "${oc.env:PATH}"),
        "an unknown resolver": _set("cfg", "policy", "horizon", "${steal:secrets}"),
        "nested 150 deep": _set("cfg", "policy", "deep", _nested(150)),
        "another class": _set("cfg", "policy", "_target_", "diffusion_policy.policy.ibc_dfo_lowdim_policy.Ibc"),
        "a class that is code": _set("cfg", "policy", "_target_", "os.system"),
        "a class that is a number": _set("cfg", "policy", "_target_", 7),
        "no class": _drop("cfg", "policy", "_target_"),
        "no policy": _drop("cfg", "policy"),
        "policy is a list": _set("cfg", "policy", [1, 2]),
        "no network": _drop("cfg", "policy", "model"),
        "another network": _set("cfg", "policy", "model", "_target_", "my.Net"),
        "no scheduler": _drop("cfg", "policy", "noise_scheduler"),
        "another scheduler": _set("cfg", "policy", "noise_scheduler", "_target_", "diffusers.EulerScheduler"),
        "horizon is text": _set("cfg", "policy", "horizon", "long"),
        "horizon is negative": _set("cfg", "policy", "horizon", -16),
        "horizon is 10^18": _set("cfg", "policy", "horizon", 10**18),
        "horizon is infinite": _set("cfg", "policy", "horizon", float("inf")),
        "horizon is NaN": _set("cfg", "policy", "horizon", NAN),
        "no observation steps": _set("cfg", "policy", "n_obs_steps", 0),
        "levels of 10^12": _set("cfg", "policy", "model", "down_dims", [10**12, 10**12]),
        "a million levels": _set("cfg", "policy", "model", "down_dims", [16] * 1_000_000),
        "no levels": _set("cfg", "policy", "model", "down_dims", []),
        "levels are text": _set("cfg", "policy", "model", "down_dims", "big"),
        "a kernel of 10^9": _set("cfg", "policy", "model", "kernel_size", 10**9 + 1),
        "no groups": _set("cfg", "policy", "model", "n_groups", 0),
        "10^12 training steps": _set("cfg", "policy", "noise_scheduler", "num_train_timesteps", 10**12),
        "-1 training steps": _set("cfg", "policy", "noise_scheduler", "num_train_timesteps", -1),
        "10^12 inference steps": _set("cfg", "policy", "num_inference_steps", 10**12),
        "an unknown schedule": _set("cfg", "policy", "noise_scheduler", "beta_schedule", "surprise"),
        "betas are NaN": lambda d: d["cfg"]["policy"]["noise_scheduler"].update(beta_schedule="linear", beta_end=NAN),
        "learned variance": _set("cfg", "policy", "noise_scheduler", "variance_type", "learned"),
        "action_dim is 0": _set("cfg", "policy", "action_dim", 0),
        "action_dim is 9": lambda d: d["cfg"].update(action_dim=9) or d["cfg"]["policy"].update(action_dim=9),
        "no state dicts": _set("state_dicts", {}),
        "state dicts are a list": _set("state_dicts", [1]),
        "a weight is NaN": lambda d: d["state_dicts"]["ema_model"][weight].view(-1).__setitem__(3, NAN),
        "a weight is infinite": lambda d: d["state_dicts"]["ema_model"][weight].view(-1).__setitem__(3, float("inf")),
        "a weight lacks": _drop(*state, weight),
        "a weight more": _set(*state, "model.extra.weight", torch.zeros(3)),
        "a weight is text": _set(*state, weight, "hello"),
        "a weight of whole numbers": lambda d: d["state_dicts"]["ema_model"].update(
            {weight: torch.zeros(2, 16, 1).long()}
        ),
        "a weight of another shape": _set(*state, weight, torch.zeros(3, 3)),
        "a weight of complex numbers": _set(*state, weight, torch.zeros(2, 16, 1, dtype=torch.complex64)),
        "no normaliser": lambda d: [
            d["state_dicts"]["ema_model"].pop(n) for n in list(d["state_dicts"]["ema_model"]) if "normalizer" in n
        ],
        "statistics are NaN": _every(".action.scale", NAN),
        "a scale of zero": _every(".action.scale", 0.0),
        "an offset is infinite": _every(".action.offset", float("inf")),
        "statistics of another length": lambda d: d["state_dicts"]["ema_model"].update(
            {
                n: torch.ones(77)
                for n in d["state_dicts"]["ema_model"]
                if n.endswith((".action.scale", ".action.offset"))
            }
        ),
    }
    for name, change in changes.items():

        def make(folder: Path, change: Change = change) -> Path:
            data = _copy(payload(whole))
            for states in data["state_dicts"].values():
                for key, value in states.items():
                    if isinstance(value, torch.Tensor):
                        states[key] = value.clone()
            change(data)
            torch.save(data, folder / "changed.ckpt")
            return folder / "changed.ckpt"

        yield "dp", f"cfg: {name}", make


def _every(ending: str, value: float) -> Change:
    def change(data: dict[str, Any]) -> None:
        for name, tensor in data["state_dicts"]["ema_model"].items():
            if name.endswith(ending):
                tensor.fill_(value)

    return change


def _json(valid: dict[str, Path]) -> Iterator[Made]:
    """config.json and its like."""
    files = [("native", "config.json"), ("lerobot", "config.json"), ("lerobot", "policy_preprocessor.json")]
    for format, file in files:
        content = json.loads((valid[format] / file).read_text())
        raw = {
            "nested 100,000 deep": "[" * 100_000 + "]" * 100_000,
            "objects nested deep": '{"a":' * 50_000 + "1" + "}" * 50_000,
            "a number of 100,000 digits": '{"version": ' + "9" * 100_000 + "}",
            "a list": "[1]",
            "null": "null",
            "a string": '"hello"',
            "not UTF-8": b'{"type": "\xff\xfe"}',
            "ends early": json.dumps(content)[:-30],
            "nothing but NaN": "NaN",
            "16 MB of blanks": " " * (16 << 20),
        }
        for name, value in raw.items():
            yield format, f"{file}: {name}", _with_bytes(valid[format], file, value)
    unet = ("policy", "unet")
    native: dict[str, Change] = {
        "format is a list": _set("format", [1]),
        "version 99": _set("version", 99),
        "version is text": _set("version", "1"),
        "no policy": _drop("policy"),
        "policy is text": _set("policy", "yes"),
        "horizon of 10^18": _set("policy", "horizon", 10**18),
        "horizon of 1e308": _set("policy", "horizon", 1e308),
        "horizon is a list": _set("policy", "horizon", [16]),
        "horizon is null": _set("policy", "horizon", None),
        "levels of 10^15": _set(*unet, "down_dims", [10**15, 10**15]),
        "a million levels": _set(*unet, "down_dims", [8] * 1_000_000),
        "levels are text": _set(*unet, "down_dims", "wide"),
        "levels are NaN": _set(*unet, "down_dims", [NAN]),
        "negative levels": _set(*unet, "down_dims", [-8, -16]),
        "kernel is text": _set(*unet, "kernel_size", "5"),
        "groups of 0": _set(*unet, "n_groups", 0),
        "an embedding of 10^12": _set(*unet, "diffusion_step_embed_dim", 10**12),
        "an odd embedding": _set(*unet, "diffusion_step_embed_dim", 7),
        "unet is a list": _set("policy", "unet", [8, 16]),
        "a transformer of 10^9 layers": lambda d: d["policy"].update(unet=None, transformer={"n_layer": 10**9}),
        "a transformer without heads": lambda d: d["policy"].update(unet=None, transformer={"n_head": 0}),
        "a transformer over 10^9 steps": lambda d: d["policy"].update(
            unet=None, transformer={"n_layer": 1}, horizon=10**9, n_action_steps=8
        ),
        "no observations": _set("policy", "obs_dims", {}),
        "observations are a list": _set("policy", "obs_dims", ["object"]),
        "an observation of -1": _set("policy", "obs_dims", "object", -1),
        "an observation of 10^15": _set("policy", "obs_dims", "object", 10**15),
        "an observation is text": _set("policy", "obs_dims", "object", "ten"),
        "10^6 observations": _set("policy", "obs_dims", {f"k{i}": 1 for i in range(10**5)}),
        "an image without encoder": _set("policy", "image_shapes", {"top": [3, 84, 84]}),
        "an image of 10^9 pixels a side": lambda d: d["policy"].update(
            image_shapes={"top": [3, 10**9, 10**9]}, encoder={"backbone": "resnet18"}
        ),
        "an encoder of 10^12 features": lambda d: d["policy"].update(
            image_shapes={"top": [3, 84, 84]}, encoder={"features": 10**12, "keypoints": 10**9}
        ),
        "an unknown encoder": lambda d: d["policy"].update(
            image_shapes={"top": [3, 84, 84]}, encoder={"backbone": "os.system"}
        ),
        "another conditioning": _set("policy", "conditioning", "telepathy"),
        "an unknown setting": _set("policy", "surprise", 1),
        "first action of -5": _set("policy", "first_action", -5),
        "10^12 training steps": _set("scheduler", "num_train_timesteps", 10**12),
        "0 training steps": _set("scheduler", "num_train_timesteps", 0),
        "training steps are text": _set("scheduler", "num_train_timesteps", "many"),
        "betas are text": lambda d: d["scheduler"].update(trained_betas=["a"] * 100),
        "betas of 5": lambda d: d["scheduler"].update(trained_betas=[5.0] * 100),
        "an unknown schedule": _set("scheduler", "beta_schedule", ["linear"]),
        "an unknown prediction": _set("scheduler", "prediction_type", "noise"),
        "scheduler is a list": _set("scheduler", []),
        "origin is a list": _set("origin", [1]),
        "notes are numbers": _set("notes", [1]),
    }
    yield from _changed("native", "config.json", valid["native"], native)
    lerobot: dict[str, Change] = {
        "another policy": _set("type", "act"),
        "type is a mapping": _set("type", {}),
        "no type": _drop("type"),
        "horizon of 10^18": _set("horizon", 10**18),
        "horizon is text": _set("horizon", "long"),
        "horizon of -16": _set("horizon", -16),
        "levels of 10^15": _set("down_dims", [10**15, 10**15]),
        "a million levels": _set("down_dims", [64] * 1_000_000),
        "levels are text": _set("down_dims", "wide"),
        "no levels": _set("down_dims", []),
        "a kernel of 10^12": _set("kernel_size", 10**12 + 1),
        "groups of 0": _set("n_groups", 0),
        "no inputs": _set("input_features", {}),
        "inputs are a list": _set("input_features", [1]),
        "no outputs": _set("output_features", {}),
        "an input of an unknown type": _set("input_features", "observation.state", {"type": "SOUND", "shape": [3]}),
        "an input of -1": _set("input_features", "observation.state", {"type": "STATE", "shape": [-1]}),
        "an input of 10^15": _set("input_features", "observation.state", {"type": "STATE", "shape": [10**15]}),
        "an input is text": _set("input_features", "observation.state", "yes"),
        "an unknown scheduler": _set("noise_scheduler_type", "Euler"),
        "10^12 training steps": _set("num_train_timesteps", 10**12),
        "10^12 inference steps": _set("num_inference_steps", 10**12),
        "an unknown prediction": _set("prediction_type", "noise"),
        "clips at NaN": _set("clip_sample_range", NAN),
        "clips at text": _set("clip_sample_range", "one"),
        "executes 10^6": _set("n_action_steps", 10**6),
        "an adapter": _set("use_peft", True),
    }
    yield from _changed("lerobot", "config.json", valid["lerobot"], lerobot)
    # With processor files it is theirs that counts.
    older: dict[str, Change] = {
        "an unknown normalisation": lambda d: d["normalization_mapping"].update(STATE="SQUASH"),
        "normalisation is a list": _set("normalization_mapping", []),
    }
    yield from _changed("lerobot_old", "config.json", valid["lerobot_old"], older)
    steps: dict[str, Change] = {
        "no steps": _set("steps", []),
        "steps are text": _set("steps", "none"),
        "a step is a number": _set("steps", [1]),
        "a step that is code": _set("steps", [{"registry_name": "os.system", "config": {"command": "touch canary"}}]),
        "a file above": lambda d: [s.update(state_file="../../../etc/passwd") for s in d["steps"] if "state_file" in s],
        "an absolute file": lambda d: [s.update(state_file="/etc/passwd") for s in d["steps"] if "state_file" in s],
        "a file of 100,000 letters": lambda d: [
            s.update(state_file="a" * 100_000) for s in d["steps"] if "state_file" in s
        ],
        "a file with a null": lambda d: [s.update(state_file="a\0b") for s in d["steps"] if "state_file" in s],
        "no file": lambda d: [s.pop("state_file", None) for s in d["steps"]],
        "delta actions": lambda d: d["steps"].append({"registry_name": "delta_actions_processor", "config": {}}),
    }
    yield from _changed("lerobot", "policy_preprocessor.json", valid["lerobot"], steps)


def _changed(format: str, file: str, whole: Path, changes: dict[str, Change]) -> Iterator[Made]:
    for name, change in changes.items():

        def make(folder: Path, change: Change = change) -> Path:
            content = json.loads((whole / file).read_text())
            change(content)
            return _with_bytes(whole, file, json.dumps(content))(folder)

        yield format, f"{file}: {name}", make


def _with_bytes(whole: Path, file: str, content: str | bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        copy = Path(shutil.copytree(whole, folder / whole.name))
        (copy / file).write_bytes(content.encode() if isinstance(content, str) else content)
        return copy

    return make


def _tensors(valid: dict[str, Path]) -> Iterator[Made]:
    """safetensors files."""
    huge = {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}
    overflow = {"a": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 4]}}
    headers: dict[str, bytes] = {
        "a header of 2^63": struct.pack("<Q", 1 << 63) + b"{}",
        "a header of 90 MB": struct.pack("<Q", 90_000_000) + b"{}",
        "an empty header": struct.pack("<Q", 2) + b"{}",
        "a header nested deep": _header(b"[" * 50_000 + b"]" * 50_000),
        "a tensor of 4 TB": _header(huge),
        "a size that overflows": _header(overflow),
        "offsets backwards": _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)),
        "offsets that overlap": _header(
            {n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, bytes(4)
        ),
        "a hole": _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}}, bytes(12)),
        "an unknown type": _header({"a": {"dtype": "F3", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        "numbers of 8 bits": _header({"model.x": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, bytes(4)),
        "the same name twice": struct.pack("<Q", 116) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}  ' + b"      " + bytes(4),
        "bytes left over": _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(400)),
    }
    for name, content in headers.items():
        yield "native", f"model.safetensors: {name}", _with_bytes(valid["native"], "model.safetensors", content)
        if name in ("a tensor of 4 TB", "a header nested deep", "an empty header", "numbers of 8 bits"):
            yield "lerobot", f"model.safetensors: {name}", _with_bytes(valid["lerobot"], "model.safetensors", content)
    statistics = "policy_preprocessor_step_3_normalizer_processor.safetensors"
    weight, bias = "model.final_conv.1.weight", "model.final_conv.1.bias"
    changed: dict[tuple[str, str, str], Change] = {
        ("native", "model.safetensors", "a weight is NaN"): lambda t: t[weight].view(-1).__setitem__(0, NAN),
        ("native", "model.safetensors", "a bias is infinite"): lambda t: t[bias].view(-1).__setitem__(0, float("inf")),
        ("native", "model.safetensors", "a weight lacks"): _drop(weight),
        ("native", "model.safetensors", "a weight more"): _set("model.more", torch.zeros(1)),
        ("native", "model.safetensors", "a stranger"): _set("evil", torch.zeros(1)),
        ("native", "model.safetensors", "a scalar"): _set(bias, torch.zeros(())),
        ("native", "model.safetensors", "an empty weight"): _set(bias, torch.zeros(0)),
        ("native", "model.safetensors", "whole numbers"): _set(bias, torch.zeros(10, dtype=torch.int64)),
        ("native", "model.safetensors", "statistics are NaN"): _set(
            "normalizer.params_dict.action.scale", torch.full((10,), NAN)
        ),
        ("native", "model.safetensors", "a scale of 0"): _set("normalizer.params_dict.action.scale", torch.zeros(10)),
        ("native", "model.safetensors", "statistics lack"): _drop("normalizer.params_dict.object.scale"),
        ("native", "model.safetensors", "statistics of a matrix"): _set(
            "normalizer.params_dict.action.scale", torch.ones(10, 2)
        ),
        ("native", "model.safetensors", "statistics of 9"): lambda t: [
            t.update({f"normalizer.params_dict.object.{n}": torch.ones(9)}) for n in ("scale", "offset")
        ],
        ("native", "model.safetensors", "an unknown statistic"): _set(
            "normalizer.params_dict.action.mode", torch.ones(10)
        ),
        ("native", "speculation.safetensors", "half of the gains"): _set("gains.dense", torch.zeros(3)),
        ("lerobot", "model.safetensors", "a weight is NaN"): lambda t: (
            next(iter(t.values())).view(-1).__setitem__(0, NAN)
        ),
        ("lerobot", "model.safetensors", "a weight lacks"): lambda t: t.pop(next(iter(t))),
        ("lerobot", "model.safetensors", "a weight more"): _set("diffusion.unet.more", torch.zeros(1)),
        ("lerobot", "model.safetensors", "a stranger"): _set("evil", torch.zeros(1)),
        ("lerobot", statistics, "are empty"): lambda t: t.clear(),
        ("lerobot", statistics, "are NaN"): lambda t: [v.fill_(NAN) for v in t.values()],
        ("lerobot", statistics, "are infinite"): lambda t: [v.fill_(float("inf")) for v in t.values()],
        ("lerobot", statistics, "of another length"): lambda t: t.update({n: torch.ones(77) for n in t}),
        ("lerobot_old", "model.safetensors", "statistics lack"): lambda t: [
            t.pop(n) for n in list(t) if "normalize_" in n
        ],
        ("lerobot_old", "model.safetensors", "statistics are infinite"): lambda t: [
            v.fill_(float("inf")) for n, v in t.items() if "normalize_" in n
        ],
    }
    for (format, file, name), change in changed.items():
        if format not in valid:
            continue

        def make(folder: Path, f: str = format, file: str = file, change: Change = change) -> Path:
            copy = Path(shutil.copytree(valid[f], folder / valid[f].name))
            tensors = {n: v.clone() for n, v in load_file(copy / file).items()}
            change(tensors)
            save_file(tensors, copy / file)
            return copy

        yield format, f"{file}: {name}", make


def _header(content: Any, data: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


def _robomimic(whole: Path) -> Iterator[Made]:
    """robomimic's .pth: a dict with a JSON config."""

    def config(change: Change) -> Change:
        def apply(data: dict[str, Any]) -> None:
            content = json.loads(data["config"])
            change(content)
            data["config"] = json.dumps(content)

        return apply

    changes: dict[str, Change] = {
        "another algorithm": _set("algo_name", "bc"),
        "no algorithm": _drop("algo_name"),
        "no config": _drop("config"),
        "config is no JSON": _set("config", "{"),
        "config is a number": _set("config", 3),
        "config nested deep": _set("config", "[" * 100_000 + "]" * 100_000),
        "config of 100,000 digits": _set("config", '{"algo": ' + "9" * 100_000 + "}"),
        "no model": _drop("model"),
        "model is a list": _set("model", [1]),
        "no shapes": _drop("shape_metadata"),
        "shapes are text": _set("shape_metadata", "yes"),
        "action of -1": _set("shape_metadata", "ac_dim", -1),
        "action of 10^15": _set("shape_metadata", "ac_dim", 10**15),
        "horizon of 10^18": config(_set("algo", "horizon", "prediction_horizon", 10**18)),
        "horizon is text": config(_set("algo", "horizon", "prediction_horizon", "long")),
        "no horizon": config(_drop("algo", "horizon")),
        "no chain": config(lambda c: [c["algo"][n].update(enabled=False) for n in ("ddpm", "ddim")]),
        "10^12 training steps": config(
            lambda c: [c["algo"][n].update(num_train_timesteps=10**12) for n in ("ddpm", "ddim")]
        ),
        "no observations": config(_drop("observation")),
    }
    for name, change in changes.items():

        def make(folder: Path, change: Change = change) -> Path:
            data = _copy(payload(whole))
            change(data)
            torch.save(data, folder / "changed.pth")
            return folder / "changed.pth"

        yield "robomimic", name, make
