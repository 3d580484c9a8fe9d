"""Policies with cameras, trained from hdf5 and zarr: whole runs, going on after a kill, images that are bad."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from tiny_images import CAMERAS, write_image_dataset, write_pusht_images

from diffpolicy_spec.checkpoints import load_policy
from diffpolicy_spec.configs import __file__ as configs_file
from diffpolicy_spec.data import DataError, read_dataset
from diffpolicy_spec.training.batches import Batches, cut_for, fit_normalizer, prepare
from diffpolicy_spec.training.cli import policy_config, run
from diffpolicy_spec.training.images import ImageLoading, ImageReader, image_tables
from diffpolicy_spec.training.model import DenoisingModel
from diffpolicy_spec.training.run import TrainingRun

UNET = [
    "model=image_unet_small", "model.unet.down_dims=[8,16]", "model.unet.diffusion_step_embed_dim=8",
    "model.encoder.crop=[36,36]", "model.encoder.features=8",
]  # fmt: skip
TRANSFORMER = [
    "model=transformer_small", "model.transformer.n_layer=1", "model.transformer.n_emb=16",
    "+model.encoder={crop:[36,36],features:8,shared:true}",
]  # fmt: skip
TINY = [
    "batch_size=4", "lr=0.003", "warmup_steps=2", "log_every=4", "val_every=20", "val_sequences=4",
    "num_threads=1", "storage_dtype=float32", "max_steps=20", "checkpoint_every=12",
    "scheduler.prediction_type=sample",
]  # fmt: skip
LIFT = ["task=lift_image", *(f"task.images.{camera}=[3,40,40]" for camera in CAMERAS)]


def settings(*overrides):
    hydra, omegaconf = pytest.importorskip("hydra"), pytest.importorskip("omegaconf")
    with hydra.initialize_config_dir(str(Path(configs_file).parent), version_base="1.3"):
        cfg = hydra.compose("train", [str(item) for item in overrides])
    return omegaconf.OmegaConf.to_container(cfg, resolve=True)


@pytest.fixture(scope="module")
def hdf5(tmp_path_factory):
    return write_image_dataset(tmp_path_factory.mktemp("data") / "lift_image.hdf5", size=40)


def lift(path, output, *more):
    return settings(*LIFT, *UNET, *TINY, f"dataset={path}", f"output={output}", *more)


@pytest.fixture(scope="module")
def trained(hdf5, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "lift"
    run(lift(hdf5, output))
    return output


def weights(output):
    state = torch.load(output / "state.pt", weights_only=True)
    named = {f"network.{n}": v for n, v in state["network"].items()}
    named |= {f"encoder.{n}": v for n, v in state["encoder"].items()}
    return named | {f"ema.{i}": v for i, v in enumerate(state["ema"])}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def test_the_loss_falls_and_the_policy_is_stored(trained, hdf5):
    losses = [json.loads(line) for line in (trained / "loss.jsonl").read_text().splitlines()]
    assert losses[-1]["train_loss"] < 0.7 * losses[0]["train_loss"]
    assert losses[-1]["val_loss"] < losses[0]["train_loss"]
    policy = load_policy(trained / "policy")
    assert list(policy.config.image_shapes) == list(CAMERAS)
    assert policy.config.task == "lift"
    for camera in CAMERAS:
        assert policy.normalizer.fields(camera)["scale"].tolist() == [2.0] * 3
        assert policy.normalizer.fields(camera)["offset"].tolist() == [-1.0] * 3
    episode = read(hdf5)[0]
    obs = {key: values[None, :2] for key, values in episode.obs.items()}
    obs |= {c: f.read([0, 1]).transpose(0, 3, 1, 2)[None] for c, f in episode.images.items()}
    action = policy.predict_action(obs, generator=torch.Generator().manual_seed(0)).action
    assert action.shape == (1, 8, 10)
    assert torch.isfinite(action).all()


def read(path, keys=("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")):
    dims = dict(zip(keys, (3, 4, 2), strict=True))
    return read_dataset(
        path, dims, action_repr="absolute_rot6d", filter_key="train",
        image_shapes=dict.fromkeys(CAMERAS, (3, 40, 40)),
    )  # fmt: skip


def test_averaged_weights_cover_the_encoder(trained):
    state = torch.load(trained / "state.pt", weights_only=True)
    policy = load_policy(trained / "policy")
    stored = [*policy.network.parameters(), *policy.encoder.parameters()]
    assert len(stored) == len(state["ema"])
    assert all(torch.equal(p, average) for p, average in zip(stored, state["ema"], strict=True))
    conv = policy.encoder.state_dict()["nets.0.backbone.conv1.weight"]
    assert not torch.equal(conv, state["encoder"]["nets.0.backbone.conv1.weight"])


def test_training_sees_what_the_policy_sees(trained, hdf5):
    """The features of a batch, cropped in the middle, are those the policy makes of the same observations."""
    policy, episodes = load_policy(trained / "policy"), read(hdf5)
    sequences = cut_for(policy.config, episodes)
    data = prepare(sequences, policy.config, policy.normalizer)
    tables, taken = image_tables(episodes, CAMERAS, ImageLoading(), budget=0)
    assert taken == 0
    rows = torch.tensor([0, 7, 30])
    frames = data.frames[rows].numpy().ravel()
    images = {camera: torch.from_numpy(table.read(frames)).unflatten(0, (3, 2)) for camera, table in tables.items()}
    model = DenoisingModel(policy.config, policy.normalizer).eval()
    model.encoder.load_state_dict(policy.encoder.state_dict())
    seen = {}
    model.network.forward = lambda x, t, given: seen.setdefault("given", given)
    model(torch.zeros(3, 16, 10), torch.zeros(3), data.condition[rows], images)
    low = sequences.obs[rows].split([3, 4, 2], dim=-1)
    obs = dict(zip(("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"), low, strict=True))
    obs |= {camera: x.movedim(-1, 2) for camera, x in images.items()}
    torch.testing.assert_close(seen["given"], policy.encode(obs), rtol=1e-5, atol=1e-5)


class Killed(Exception):
    pass


def kill_at(monkeypatch, step):
    advance = TrainingRun.advance

    def dies(self):
        if self.step == step:
            raise Killed
        return advance(self)

    monkeypatch.setattr(TrainingRun, "advance", dies)


def kill_and_resume(make, output, monkeypatch):
    """The weights of a run that was killed after its first checkpoint and run again."""
    with monkeypatch.context() as patch:
        kill_at(patch, 15)
        with pytest.raises(Killed):
            run(make(output))
    assert torch.load(output / "state.pt", weights_only=True)["step"] == 12
    run(make(output))
    return weights(output)


def test_resume_is_exact_with_an_encoder(trained, hdf5, tmp_path, monkeypatch):
    assert_equal(kill_and_resume(lambda output: lift(hdf5, output), tmp_path / "killed", monkeypatch), weights(trained))


def test_a_transformer_from_a_store(tmp_path, monkeypatch):
    """Push-T's float images; what dropout drops belongs to the step, too, and nobody else's numbers are used up."""
    store = write_pusht_images(tmp_path / "pusht.zarr", size=40)

    def make(output, *more):
        return settings(
            "task=pusht_image", "task.images.image=[3,40,40]", *TRANSFORMER, *TINY, f"dataset={store}",
            f"output={output}", "model.transformer.p_drop_attn=0.3", *more,
        )  # fmt: skip

    before = torch.random.get_rng_state()
    run(make(tmp_path / "whole"))
    killed = kill_and_resume(lambda output: make(output, "cache_images=none"), tmp_path / "killed", monkeypatch)
    assert_equal(killed, weights(tmp_path / "whole"))
    assert torch.equal(torch.random.get_rng_state(), before)
    policy = load_policy(tmp_path / "whole" / "policy")
    assert policy.config.obs_keys == ("agent_pos", "image")
    images = np.zeros((2, 2, 3, 40, 40), np.uint8)
    assert policy.predict_action({"agent_pos": np.zeros((2, 2, 2)), "image": images}).action.shape == (2, 8, 2)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", ["none", "ram", "auto"])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_how_images_are_read_changes_nothing(hdf5, tmp_path, cache, workers, compression):
    path = hdf5 if compression is None else write_image_dataset(tmp_path / "gzip.hdf5", size=40, compression="gzip")
    episodes, loading = read(path), ImageLoading(cache, workers=workers)
    config = policy_config(lift(path, tmp_path))
    data = prepare(cut_for(config, episodes), config, fit_normalizer(episodes, config))
    drawn = Batches(data, batch_size=7, num_timesteps=100, seed=0)
    tables, _ = image_tables(episodes, CAMERAS, loading, budget=10**9)
    reader = ImageReader(tables, data.frames, drawn.order, drawn.share, loading, 12, "cpu")
    every = {c: np.concatenate([e.images[c].read(range(len(e))) for e in read(hdf5)]) for c in CAMERAS}
    for step in (0, 1, 2, 9, 10, 11, 3):  # as after a resume, and back
        batch = reader.fill(drawn.at(step), step)
        for camera in CAMERAS:
            assert batch.images[camera].dtype == torch.uint8
            np.testing.assert_array_equal(batch.images[camera].numpy(), every[camera][batch.frames.numpy()])


def test_memory_is_not_taken_beyond_the_budget(tmp_path):
    path = write_image_dataset(tmp_path / "gzip.hdf5", size=40, compression="gzip")
    episodes, needed = read(path), 63 * 2 * 40 * 40 * 3
    for loading in (ImageLoading(), ImageLoading("ram")):
        tables, taken = image_tables(episodes, CAMERAS, loading, budget=needed)
        assert taken == needed
        assert all(table.direct for table in tables.values())
    tables, taken = image_tables(episodes, CAMERAS, ImageLoading(), budget=needed - 1)
    assert taken == 0
    assert not any(table.direct for table in tables.values())
    with pytest.raises(DataError, match=r"cache_images=ram needs .* agentview_image, .*raise image_cache_gb"):
        image_tables(episodes, CAMERAS, ImageLoading("ram"), budget=needed - 1)
    assert ImageLoading(cache_gb=2).budget(processes=4) == 500_000_000


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_end_a_run_with_their_name(tmp_path, workers):
    path = write_image_dataset(tmp_path / "gzip.hdf5", size=40, compression="gzip", chunks=(3, 40, 40, 3))
    with h5py.File(path, "r") as file:
        found = [file[f"data/demo_1/obs/{CAMERAS[1]}"].id.get_chunk_info(i) for i in range(1, 8)]
    data = bytearray(path.read_bytes())
    for chunk in found:
        data[chunk.byte_offset : chunk.byte_offset + 16] = bytes(16)
    path.write_bytes(data)
    with pytest.raises(DataError) as raised:
        run(lift(path, tmp_path / "run", "cache_images=none", f"image_workers={workers}"))
    assert f"demo_1: 'obs/{CAMERAS[1]}' cannot be read" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.images.agentview_image=[3,84,84]"], r"has shape \(20, 40, 40, 3\), expected \(20, 84, 84, 3\)"),
        (["+task.images.sideview_image=[3,40,40]"], "demo_0: 'obs/sideview_image' is not there; there are: agentview_"),
        (["cache_images=disk"], "cache_images must be auto, ram, none; got 'disk'"),
        (["image_workers=-1"], "must not be negative"),
        (["+model.conditioning=inpainting"], "gives an image encoder no gradient"),
        (["model.encoder.crop=[32,32]"], "one cell"),
        (["model.encoder.crop=[41,41]"], r"crop .41, 41. does not fit into images"),
    ],
)
def test_what_does_not_fit_is_said(hdf5, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        run(lift(hdf5, tmp_path / "run", *overrides))
    assert not (tmp_path / "run" / "policy").exists()
