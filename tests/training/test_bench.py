"""dps-bench on a small policy and a real hdf5, after dps-calibrate."""

import json

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tiny_dataset import write_dataset
from tiny_policy import tiny_policy

from diffpolicy_spec.training import bench, calibrate


def settings(name, **changes):
    with initialize_config_module("diffpolicy_spec.configs", version_base="1.3"):
        cfg = OmegaConf.to_container(compose(name), resolve=True)
    return cfg | {"moments": 4, "timed": 2, "num_inference_steps": 6} | changes


def test_what_was_chosen_is_measured_again(tmp_path, capsys):
    folder, dataset = tmp_path / "policy", write_dataset(tmp_path / "demos.hdf5")
    tiny_policy().save(folder)
    given = {"checkpoint": str(folder), "dataset": str(dataset)}
    with pytest.raises(ValueError, match=r"no choice is stored for cpu, 6 steps \(stored: none\): run dps-calibrate"):
        bench.run(settings("bench", **given))
    calibrate.run(settings("calibrate", **given, gains=False, probes=1, finalists=2, threads=[1]))
    capsys.readouterr()
    output = tmp_path / "new" / "bench.json"
    assert bench.run(settings("bench", **given, output=str(output))) == output
    said, content = capsys.readouterr().out, json.loads(output.read_text())
    assert "sampler=auto is " in said
    assert "measured with" not in said
    assert [row["name"] for row in content["samplers"]] == ["auto", "sequential", "DDIM-10"]
    assert [row["calls"] for row in content["samplers"][1:]] == [6, 10]
    assert {"versions", "device", "commit", "num_threads", "load"} <= set(content["environment"])
    assert content["changed"] == []
    # Other weights: the choice is shown, and that it may be out of date.
    tiny_policy(seed=1, speculation={"other": torch.ones(3)}).save(tmp_path / "other")
    (tmp_path / "other" / "speculation.json").write_bytes((folder / "speculation.json").read_bytes())
    bench.run(settings("bench", **given | {"checkpoint": str(tmp_path / "other")}, output=str(output)))
    assert "measured with other weights, gains or draft network" in capsys.readouterr().out
    assert json.loads(output.read_text())["changed"] == ["other weights, gains or draft network"]


def test_what_is_missing_is_said():
    with pytest.raises(ValueError, match="checkpoint=PATH"):
        bench.run(settings("bench"))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        bench.run(settings("bench", checkpoint="lift", timed=0))
