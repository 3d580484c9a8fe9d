"""dps-inspect on checkpoints: what it tells of each format, without reading the weights."""

import json
import tracemalloc

import pytest
import torch
import upstream_fixtures
from safetensors.torch import load_file, save_file
from tiny_policy import SCHEDULER, tiny_policy

from diffpolicy_spec import load_policy
from diffpolicy_spec.checkpoints import CheckpointError
from diffpolicy_spec.checkpoints.formats import read_parts
from diffpolicy_spec.checkpoints.shapes_only import shapes_only
from diffpolicy_spec.tools import describe
from diffpolicy_spec.tools.inspect_cli import run


@pytest.mark.parametrize("name", upstream_fixtures.NAMES)
def test_what_is_told_is_what_is_loaded(name, tmp_path):
    if name == "robomimic_full_size":
        pytest.skip("66 M parameters: test_weights_stay_in_their_file has it")
    path, _, meta = upstream_fixtures.fixture(name, tmp_path)
    report, policy = describe(path), load_policy(path)
    facts = report.facts
    assert report.format == {"dp": "diffusion_policy"}.get(name.split("_")[0], name.split("_")[0])
    assert facts["class"] == meta["class"].rpartition(".")[2]
    assert facts["parameters"]["network"] == sum(p.numel() for p in policy.network.parameters())
    if policy.encoder is not None:
        assert facts["parameters"]["encoder"] == sum(p.numel() for p in policy.encoder.parameters())
    assert [row["key"] for row in facts["observations"]] == list(policy.config.obs_keys)
    assert report.notes == tuple(policy.notes)
    assert facts["exact_acceleration"] == (policy.scheduler_config["_class_name"] != "DDIMScheduler")
    if not facts["exact_acceleration"]:
        assert "DDIM" in facts["how"]
        assert "SamplerConfig('speculative')" in facts["how"]
    json.dumps(report.data(), allow_nan=False)
    assert report.text().startswith(f"{path}: {report.format} checkpoint")


def test_ranges_are_those_that_become_minus_one_and_one(tmp_path):
    policy = tiny_policy()
    policy.save(tmp_path / "p")
    rows = {row["key"]: row for row in describe(tmp_path / "p").facts["observations"]}
    fields = policy.normalizer.fields("robot0_eef_pos")
    low, high = rows["robot0_eef_pos"]["normalised"]
    assert low == pytest.approx(float(fields["input_stats.min"].min()), abs=1e-4)
    assert high == pytest.approx(float(fields["input_stats.max"].max()), abs=1e-4)


def test_a_shipped_policy_in_words(capsys):
    assert run(["lift"]) == 0
    text = capsys.readouterr().out
    for line in ("native checkpoint", "kind U-Net", "network 2,465,018", "exact acceleration  yes", "draft 488,551"):
        assert line in text
    assert "  object               (10,)  " in text


def test_a_chain_that_cannot_be_speculated_on_says_why(tmp_path):
    policy = tiny_policy()
    policy.scheduler_config = {**SCHEDULER, "thresholding": True, "clip_sample": False}
    policy.save(tmp_path / "p")
    report = describe(tmp_path / "p")
    assert isinstance(report.facts["exact_acceleration"], bool)
    if not report.facts["exact_acceleration"]:
        assert "threshold" in report.facts["how"]


@pytest.mark.parametrize("name", ["robomimic_full_size", "dp_unet_image", "lerobot_images_separate"])
def test_weights_stay_in_their_file(name, tmp_path):
    path, _, _ = upstream_fixtures.fixture(name, tmp_path)
    with shapes_only():
        parts = read_parts(path)
    large = [t for t in (*parts.network.values(), *parts.encoder.values()) if t.numel() > 1 << 16]
    assert large
    assert all(t.is_meta for t in large)
    assert not any(t.is_meta for fields in parts.normalizer.params.values() for t in fields.values())
    tracemalloc.start()
    describe(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6
    # Outside of it, everything is read.
    assert not any(t.is_meta for t in read_parts(path).network.values())


def test_check_reads_every_weight(tmp_path, capsys):
    tiny_policy(unet=type(tiny_policy().config.unet)(down_dims=(64, 128), diffusion_step_embed_dim=8)).save(
        tmp_path / "p"
    )
    tensors = load_file(tmp_path / "p" / "model.safetensors")
    name = max(tensors, key=lambda n: tensors[n].numel())
    tensors[name].view(-1)[7] = float("nan")
    save_file(tensors, tmp_path / "p" / "model.safetensors")
    assert run([str(tmp_path / "p")]) == 0
    capsys.readouterr()
    assert run([str(tmp_path / "p"), "--check"]) == 1
    assert f"'{name}' is not of finite" in capsys.readouterr().err


def test_what_does_not_fit_is_one_line(tmp_path, capsys):
    tiny_policy().save(tmp_path / "p")
    tensors = load_file(tmp_path / "p" / "model.safetensors")
    tensors["model.mid_modules.0.blocks.0.block.0.weight"] = torch.zeros(3, 3)
    save_file(tensors, tmp_path / "p" / "model.safetensors")
    assert run([str(tmp_path / "p")]) == 1
    caught = capsys.readouterr()
    assert caught.out == ""
    assert len(caught.err.splitlines()) == 1
    assert "has shape (3, 3)" in caught.err
    with pytest.raises(CheckpointError):
        describe(tmp_path / "p")
