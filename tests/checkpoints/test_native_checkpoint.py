"""The native checkpoint folder: what is read is what was written, and whatever else is there is told apart."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_policy import CAMERAS, OBS_DIMS, TRANSFORMER, obs_for, tiny_config, tiny_policy

from diffpolicy_spec.checkpoints import CheckpointError, load_native, load_policy, save_policy, save_speculation
from diffpolicy_spec.checkpoints import native as native_module
from diffpolicy_spec.checkpoints.native import read_native
from diffpolicy_spec.checkpoints.parts import build_policy
from diffpolicy_spec.policies import EncoderConfig, UnetConfig
from diffpolicy_spec.samplers import SamplerConfig

ORDER = ("wrist", *OBS_DIMS, "front")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    tiny_policy().save(folder, storage_dtype="float16", training={"steps_done": 7})
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(saved, tmp_path / "damaged")


def chunk(policy):
    sampler = policy.bind(SamplerConfig(method="ddpm", num_inference_steps=5))
    obs = obs_for(policy.config)
    return policy.predict_action(obs, sampler=sampler, generator=torch.Generator().manual_seed(0)).action_pred


def test_there_and_back_in_float32(tmp_path):
    policy = tiny_policy()
    policy.save(tmp_path / "p")
    again = load_policy(tmp_path / "p")
    assert again.config == policy.config == tiny_config()
    assert again.scheduler_config == policy.scheduler_config
    assert again.speculation is None
    assert not again.network.training
    assert torch.equal(chunk(again), chunk(policy))


@pytest.mark.parametrize(
    "changes",
    [
        CAMERAS,
        {**CAMERAS, "encoder": EncoderConfig("resnet18", "batch", "average", crop=(36, 36))},
        {
            **CAMERAS,
            "encoder": EncoderConfig(shared=True, crop=(36, 36)),
            "feature_order": ("wrist", *OBS_DIMS, "front"),
        },
        TRANSFORMER,
        {**TRANSFORMER, "conditioning": "inpainting"},
        {"conditioning": "local", "first_action": 2, "num_inference_steps": 5},
    ],
    ids=["cameras", "batch norm", "shared", "transformer", "inpainting", "local"],
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_kind_of_policy_there_and_back(tmp_path, changes, dtype):
    policy = tiny_policy(**changes)
    policy.origin, policy.notes = {"format": "lerobot", "class": "DiffusionPolicy"}, ("Crops are centred.",)
    policy.save(tmp_path / "p", storage_dtype=dtype)
    again = load_policy(tmp_path / "p")
    assert again.config == policy.config
    assert (again.origin, again.notes) == (policy.origin, policy.notes)
    if policy.encoder is not None:
        assert not again.encoder.training
        for name, value in policy.encoder.named_parameters():
            expected = value.half().float() if dtype == "float16" else value
            assert torch.equal(again.encoder.state_dict()[name], expected)
        for name, value in policy.encoder.named_buffers():  # running statistics, positions: as they were
            assert torch.equal(again.encoder.state_dict()[name], value)
    if dtype == "float32":
        assert torch.equal(chunk(again), chunk(policy))
    again.save(tmp_path / "again", storage_dtype=dtype)
    assert torch.equal(chunk(load_policy(tmp_path / "again")), chunk(again))


def test_folders_of_before_have_no_origin(folder):
    config = json.loads((folder / "config.json").read_text())
    for name in ("origin", "notes"):
        del config[name]
    for name in ("image_shapes", "encoder", "feature_order", "conditioning", "first_action", "transformer"):
        del config["policy"][name]
    (folder / "config.json").write_text(json.dumps(config))
    policy = load_policy(folder)
    assert (policy.config, policy.origin, policy.notes) == (tiny_config(), {}, ())


def test_weights_are_not_copied(tmp_path):
    """float32 tensors become the parameters as they are, normal or transformer, with cameras or without."""
    for changes in (CAMERAS, TRANSFORMER):
        tiny_policy(**changes).save(tmp_path / "p")
        parts = read_native(tmp_path / "p")
        policy = build_policy(parts, tmp_path / "p")
        for module, given in ((policy.network, parts.network), (policy.encoder, parts.encoder)):
            for name, value in module.state_dict().items() if module is not None else ():
                assert value.data_ptr() == given[name].data_ptr(), name
                assert value.device.type == "cpu"


_PEAK = """
import re, sys
from diffpolicy_spec.checkpoints import load_policy
def highest():  # of this process; ru_maxrss counts what its parent had
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
load_policy(sys.argv[1])  # all that is imported on the way
before = highest()
policy = load_policy(sys.argv[2])
print((highest() - before) / sum(v.nbytes for v in policy.network.state_dict().values()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1.3), ("float16", 1.9)])
def test_memory_while_loading(saved, tmp_path, dtype, most):
    """21M parameters in a process of its own: float32 weights are there once, float16 ones beside their float32."""
    tiny_policy(unet=UnetConfig((128, 256, 640))).save(tmp_path / "large", storage_dtype=dtype)
    command = [sys.executable, "-c", _PEAK, str(saved), str(tmp_path / "large")]
    peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0.9 < peak < most


def test_float16_is_what_the_stored_weights_say(saved, tmp_path):
    policy = load_policy(str(saved))
    assert policy.dtype == torch.float32
    for name, value in tiny_policy().network.state_dict().items():
        assert torch.equal(policy.network.state_dict()[name], value.half().float())
    # Statistics lose nothing.
    for name, value in tiny_policy().normalizer.state_dict().items():
        assert torch.equal(policy.normalizer.state_dict()[name], value)
    save_policy(policy, tmp_path / "again", storage_dtype="float16")
    assert torch.equal(chunk(load_policy(tmp_path / "again")), chunk(policy))


def test_files(saved):
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]
    assert [p.name for p in saved.parent.iterdir()] == ["tiny"]  # nothing temporary is left
    config = json.loads((saved / "config.json").read_text())
    assert config["training"] == {"steps_done": 7}
    tensors = load_file(saved / "model.safetensors")
    assert tensors["model.mid_modules.0.blocks.0.block.0.weight"].dtype == torch.float16
    assert tensors["normalizer.params_dict.robot0_eef_pos.input_stats.min"].dtype == torch.float32


def test_speculation_beside_the_weights(folder):
    gains = {"gain": torch.randn(3, 4, 4).half()}
    save_speculation(gains, folder)
    assert torch.equal(load_policy(folder).speculation["gain"], gains["gain"])
    policy = tiny_policy(speculation=gains)
    policy.save(folder)
    assert torch.equal(load_policy(folder).speculation["gain"], gains["gain"])
    tiny_policy().save(folder)
    assert load_policy(folder).speculation is None


def test_saving_replaces_whole_folders_and_nothing_else(folder, tmp_path):
    (folder / "stale.txt").write_text("x")
    tiny_policy(seed=1).save(folder)
    assert not (folder / "stale.txt").exists()
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="not a checkpoint folder"):
        tiny_policy().save(stranger)
    assert (stranger / "thesis.tex").exists()


def test_a_failed_save_leaves_the_old_checkpoint(folder, monkeypatch):
    before = chunk(load_policy(folder))

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(native_module, "_write_tensors", full)
    with pytest.raises(OSError, match="No space"):
        tiny_policy(seed=1).save(folder)
    monkeypatch.undo()
    assert torch.equal(chunk(load_policy(folder)), before)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_weights_too_large_for_float16(tmp_path):
    policy = tiny_policy()
    with torch.no_grad():
        policy.network.final_conv[1].bias[0] = 1e6
    with pytest.raises(ValueError, match=r"not finite as float16: model\.final_conv\.1\.bias"):
        policy.save(tmp_path / "p", storage_dtype="float16")
    assert not (tmp_path / "p").exists()
    with pytest.raises(ValueError, match="storage_dtype must be float32 or float16"):
        policy.save(tmp_path / "p", storage_dtype="int8")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated(folder, name, share):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=rf"{name}.*(truncated|damaged)"):
        load_policy(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [("config.json", r"has no config\.json"), ("model.safetensors", r"model\.safetensors is missing")],
)
def test_missing_file(folder, name, message):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=message):
        load_policy(folder)


@pytest.mark.parametrize(
    ("text", "message"), [("[" * 100_000, "nested too deeply"), (" " * 2**25 + "{}", "too large"), ("[]", "mapping")]
)
def test_a_config_that_is_none(folder, text, message):
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"config\.json.*{message}"):
        load_native(folder)


def test_damaged_speculation(folder):
    (folder / "speculation.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match=r"speculation\.safetensors is not a readable"):
        load_policy(folder)


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


BIAS = "model.final_conv.1.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(BIAS), r"lacks: model\.final_conv\.1\.bias"),
        (lambda t: t.update({"model.extra.weight": torch.zeros(1)}), r"has unexpected: model\.extra\.weight"),
        (lambda t: t.update({"optimizer.step": torch.zeros(1)}), r"unexpected tensors: optimizer\.step"),
        (lambda t: t.update({BIAS: torch.zeros(9)}), r"'model\.final_conv\.1\.bias' has shape \(9,\).*\(10,\)"),
        (lambda t: t.update({BIAS: torch.full((10,), float("nan"))}), r"'model\.final_conv\.1\.bias' is not of finite"),
        (lambda t: t.update({BIAS: torch.zeros(10, dtype=torch.int8)}), r"final_conv\.1\.bias' is not of finite"),
        (lambda t: t.pop("normalizer.params_dict.action.offset"), "normalisation of 'action' lacks offset"),
        (
            lambda t: [t.pop(n) for n in list(t) if ".object." in n],
            r"no normalisation statistics for 'object' \(there are: action, robot0_eef_pos",
        ),
        (
            lambda t: t.update({f"normalizer.params_dict.object.{n}": torch.ones(9) for n in ("scale", "offset")}),
            "'object' has 9 dimensions, expected 10",
        ),
    ],
)
def test_tensors_that_do_not_fit(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_policy(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="other"), r"not of format 'diffpolicy_spec\.policy'"),
        (lambda c: c.update(version=99), "version 99; this release reads version 1"),
        (lambda c: c.pop("policy"), "lacks the section 'policy'"),
        (lambda c: c.pop("scheduler"), "lacks the section 'scheduler'"),
        (lambda c: c["policy"].update(action_repr="relative"), "does not describe a policy: action_repr"),
        (lambda c: c["policy"].pop("action_dim"), "lacks action_dim"),
        (lambda c: c["policy"].update(horizon="long"), "does not describe a policy"),
        (lambda c: c["policy"]["unet"].update(kernel_size=4), "kernel_size must be odd"),
        (lambda c: c["scheduler"].update(variance_type="learned"), "variance_type 'learned' is not supported"),
        (lambda c: c["policy"]["unet"].update(down_dims=[8, 24]), "its config asks for"),
        (lambda c: c["policy"].update(num_inference_steps=101), "num_inference_steps must be a whole number from 1"),
        (lambda c: c.update(origin="here"), "'origin' must be a mapping and 'notes' a list of sentences"),
        (lambda c: c.update(notes=[1]), "'origin' must be a mapping and 'notes' a list of sentences"),
    ],
)
def test_configs_that_do_not_fit(folder, change, message):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_policy(folder)


def pop_running(tensors):
    del tensors["encoder.nets.1.backbone.layer3.0.bn1.running_var"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pop_running, r"lacks: encoder\.nets\.1\.backbone\.layer3\.0\.bn1\.running_var"),
        (lambda t: t.update({"encoder.nets.2.backbone.conv1.weight": torch.zeros(1)}), "unexpected: encoder.nets.2"),
        (lambda t: t["encoder.nets.0.linear.bias"].fill_(torch.inf), r"'encoder\.nets\.0\.linear\.bias' is not of"),
        (
            lambda t: t.update({"encoder.nets.0.backbone.bn1.num_batches_tracked": torch.tensor(0.5)}),
            "num_batches_tracked' must hold whole numbers",
        ),
        (lambda t: t["model.mask"].fill_(0), "'model.mask' is not the mask of its config's attention"),
        (lambda t: t["model.memory_mask"].fill_(torch.nan), "'model.memory_mask' is not the mask"),
    ],
)
def test_encoders_and_masks_that_do_not_fit(tmp_path, change, message):
    encoder = EncoderConfig(norm="batch", keypoints=4, features=6)
    tiny_policy(**CAMERAS | TRANSFORMER | {"encoder": encoder}).save(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        load_policy(tmp_path)


def test_an_encoder_without_cameras(folder):
    rewrite(folder, lambda t: t.update({"encoder.nets.0.linear.bias": torch.zeros(6)}))
    with pytest.raises(CheckpointError, match="has an image encoder, and its config no cameras"):
        load_policy(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": [99, 99]}, r"does not describe a policy: crop \(99, 99\) does not fit"),
        ({"crop": [36]}, r"crop must be \(height, width\), got \[36\]"),
        ({"crop": None, "resize": [900_000, 900_000]}, r"pos_x' has shape \(1, 4\), its config asks for \(1, 79101"),
        ({"features": 1 << 20, "keypoints": 1 << 20}, r"asks for \(16, 4194350\)"),
        ({"backbone": "vit"}, "backbone must be resnet18"),
    ],
)
def test_encoders_that_cannot_be(tmp_path, changes, message):
    """Whatever sizes a config claims, they are held against the file before anything is made of them."""
    tiny_policy(**CAMERAS).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["policy"]["encoder"] |= changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_policy(tmp_path)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "C64"])
def test_data_types_that_are_not_read(folder, dtype):
    data = (folder / "model.safetensors").read_bytes()
    replaced = data.replace(b'"dtype":"F16"', f'"dtype":"{dtype}"'.encode(), 1)
    size = int.from_bytes(data[:8], "little") + len(replaced) - len(data)
    (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + replaced[8:])
    with pytest.raises(CheckpointError, match=r"not read here|not a readable safetensors file"):
        load_policy(folder)


def test_unknown_names(tmp_path):
    with pytest.raises(CheckpointError, match=r"'lfit' is neither an existing path nor a shipped policy \(shipped: "):
        load_policy("lfit")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_native(tmp_path / "nowhere")
