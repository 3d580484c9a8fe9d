"""Learning rate, averaged weights, batches, objective, loss curves, normaliser."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from tiny_policy import OBS_DIMS, SCHEDULER, tiny_config

from diffpolicy_spec.data import Episode
from diffpolicy_spec.policies import TransformerConfig
from diffpolicy_spec.policies.normalizer import LinearNormalizer, fit_limits
from diffpolicy_spec.scheduler_settings import training_abar
from diffpolicy_spec.training import TrainConfig
from diffpolicy_spec.training.batches import Batches, TrainingData, cut_for, fit_normalizer, prepare
from diffpolicy_spec.training.curves import append_record, plot_curves, read_records, truncate_records
from diffpolicy_spec.training.model import DenoisingModel, parameter_groups
from diffpolicy_spec.training.objective import add_noise, denoising_loss, prediction_target
from diffpolicy_spec.training.optim import Ema, cosine_lr
from diffpolicy_spec.training.order import Share


def test_learning_rate():
    lr = [cosine_lr(step, peak=2.0, warmup_steps=10, max_steps=110) for step in range(110)]
    np.testing.assert_allclose(lr[:10], 2.0 * np.arange(1, 11) / 11)
    assert lr[10] == 2.0
    assert lr[60] == pytest.approx(1.0)
    assert lr[109] == pytest.approx(1.0 + math.cos(math.pi * 0.99))
    assert all(a > b for a, b in itertools.pairwise(lr[10:]))
    assert cosine_lr(0, peak=2.0, warmup_steps=0, max_steps=5) == 2.0


def test_averaged_weights():
    parameters = [torch.zeros(3), torch.zeros(2, 2)]
    ema = Ema(parameters, power=0.75, max_decay=0.9)
    expected = 0.0
    for step in range(200):
        for p in parameters:
            p.fill_(float(step))
        decay = 0.0 if step == 0 else min(0.9, 1 - (1 + step) ** -0.75)
        expected = decay * expected + (1 - decay) * step
        ema.update(parameters, step)
    assert ema.decay(1) == pytest.approx(1 - 2**-0.75)
    assert ema.decay(10**6) == 0.9
    for average, p in zip(ema.average, parameters, strict=True):
        assert average.shape == p.shape
        torch.testing.assert_close(average, torch.full_like(p, expected))


def batches(seed=0, count=50, size=8, share=None):
    rows = torch.arange(count, dtype=torch.float32)
    data = TrainingData(rows[:, None].repeat(1, 3), rows[:, None, None].repeat(1, 4, 2), None, rows[:, None].long())
    return Batches(data, batch_size=size, num_timesteps=100, seed=seed, share=share)


def test_a_batch_is_a_function_of_seed_and_step():
    run, again = batches(), batches()
    for step in range(20):
        run.at(step)
    for step in (13, 3, 19):  # in any order, as after a resume
        for name in ("condition", "x0", "noise", "t"):
            assert torch.equal(getattr(run.at(step), name), getattr(again.at(step), name))
    assert not torch.equal(run.at(3).noise, run.at(4).noise)
    assert not torch.equal(batches(seed=1).at(3).noise, run.at(3).noise)


def test_processes_share_a_batch():
    """Together they have the batch of one process, to the last crop."""
    whole = batches().at(5)
    parts = [batches(share=Share(rank, 4)).at(5) for rank in range(4)]
    for name in ("condition", "x0", "noise", "t", "frames"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert [seed for part in parts for seed in part.crops] == whole.crops
    assert len(set(whole.crops)) == 8


def test_an_epoch_visits_every_sequence_once():
    run = batches(count=48)
    assert run.order.steps_per_epoch == 6
    orders = [torch.cat([run.at(epoch * 6 + i).condition[:, 0] for i in range(6)]) for epoch in range(2)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(48))
    assert not torch.equal(orders[0], orders[1])
    batch = run.at(0)
    assert torch.equal(batch.condition[:, 0], batch.x0[:, 0, 0])  # rows stay together


def test_fewer_sequences_than_a_batch():
    assert sorted(batches(count=5).at(17).condition[:, 0].tolist()) == [0, 1, 2, 3, 4]


def test_validation_batches_are_the_same_every_time():
    first, second = batches().evenly(10, 4), batches().evenly(10, 4)
    assert [len(b.t) for b in first] == [4, 4, 2]
    assert first[0].condition[0, 0] == 0
    assert first[-1].condition[-1, 0] == 49
    assert all(torch.equal(a.noise, b.noise) and torch.equal(a.t, b.t) for a, b in zip(first, second, strict=True))
    assert sum(len(b.t) for b in batches().evenly(1000, 16)) == 50


def test_noise_and_targets_are_those_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(**{k: v for k, v in SCHEDULER.items() if k != "_class_name"})
    x0, noise, t = torch.randn(100, 16, 10), torch.randn(100, 16, 10), torch.arange(100)
    abar = torch.from_numpy(training_abar(SCHEDULER)).float()
    torch.testing.assert_close(add_noise(x0, noise, t, abar), scheduler.add_noise(x0, noise, t), rtol=1e-4, atol=1e-5)
    velocity = prediction_target(x0, noise, t, abar, "v_prediction")
    torch.testing.assert_close(velocity, scheduler.get_velocity(x0, noise, t), rtol=1e-4, atol=1e-5)
    assert prediction_target(x0, noise, t, abar, "epsilon") is noise
    assert prediction_target(x0, noise, t, abar, "sample") is x0
    with pytest.raises(ValueError, match="epsilon, sample or v_prediction"):
        prediction_target(x0, noise, t, abar, "score")


def test_sequences_are_normalised_key_by_key():
    from diffpolicy_spec.data import Sequences

    rng = np.random.default_rng(0)
    dims = {"b": 2, "a": 1}
    normalizer = LinearNormalizer(
        {key: fit_limits(rng.normal(size=(9, d))) for key, d in {**dims, "action": 3}.items()}
    )
    sequences = Sequences(torch.randn(4, 2, 3), torch.randn(4, 16, 3), torch.zeros(4, 2, dtype=torch.long))
    data = prepare(sequences, tiny_config(obs_dims=dims, action_dim=3, action_repr="raw"), normalizer)
    condition, x0 = data.condition, data.x0
    assert condition.shape == (4, 6)
    torch.testing.assert_close(condition[:, 3:5], normalizer.normalize("b", sequences.obs[:, 1, :2]))
    torch.testing.assert_close(condition[:, 2:3], normalizer.normalize("a", sequences.obs[:, 0, 2:]))
    torch.testing.assert_close(x0, normalizer.normalize("action", sequences.actions))


def test_known_coordinates_are_shown_and_not_judged():
    """Inpainting: a step of the plan is (action, observation); the first To observations are known."""
    config = tiny_config(obs_dims={"a": 3}, action_dim=2, action_repr="raw", conditioning="inpainting")
    rng = np.random.default_rng(0)
    episode = Episode(
        "demo", {"a": rng.normal(size=(30, 3)).astype(np.float32)}, rng.normal(size=(30, 2)).astype(np.float32)
    )
    sequences = cut_for(config, [episode])
    data = prepare(sequences, config, fit_normalizer([episode], config))
    assert data.x0.shape == (len(sequences), 16, 5)
    assert data.condition.shape == (len(sequences), 0)
    assert data.known.nonzero().tolist() == [[step, column] for step in (0, 1) for column in (2, 3, 4)]
    batch = Batches(data, batch_size=6, num_timesteps=100, seed=0).at(0)
    abar = torch.from_numpy(training_abar(SCHEDULER)).float()
    seen = []

    def model(x_t, t, condition):
        seen.append(x_t)
        return torch.where(batch.known, 1e3, batch.noise + 0.5)  # far off where nobody asks

    loss = denoising_loss(model, batch, abar, "epsilon")
    assert loss == pytest.approx(0.25 * (1 - 6 / 80))
    assert torch.equal(seen[0][:, :2, 2:], batch.x0[:, :2, 2:])
    free = add_noise(batch.x0, batch.noise, batch.t, abar)
    assert torch.equal(seen[0][:, 2:], free[:, 2:])


def test_local_conditions_stand_beside_the_actions():
    config = tiny_config(obs_dims={"a": 3}, action_dim=2, action_repr="raw", conditioning="local")
    rng = np.random.default_rng(0)
    obs, actions = rng.normal(size=(30, 3)).astype(np.float32), rng.normal(size=(30, 2)).astype(np.float32)
    episode = Episode("demo", {"a": obs}, actions)
    sequences, normalizer = cut_for(config, [episode]), fit_normalizer([episode], config)
    condition = prepare(sequences, config, normalizer).condition.unflatten(1, (16, 3))
    torch.testing.assert_close(condition[:, :2], normalizer.normalize("a", sequences.obs))
    assert not condition[:, 2:].any()


def test_what_decays():
    """Weights of linear layers and attention of a Transformer; all of a U-Net, as upstream has it."""
    config = tiny_config(unet=None, transformer=TransformerConfig(n_layer=1, n_head=2, n_emb=8))
    model = DenoisingModel(config, LinearNormalizer({}))
    names = {id(p): name for name, p in model.network.named_parameters()}
    decaying, kept = ({names[id(p)] for p in group["params"]} for group in parameter_groups(model, 1e-3, None))
    assert {"input_emb.weight", "head.weight", "decoder.layers.0.self_attn.in_proj_weight"} <= decaying
    assert {"pos_emb", "cond_pos_emb", "ln_f.weight", "head.bias", "decoder.layers.0.norm1.weight"} <= kept
    assert all(name.endswith("weight") and "norm" not in name for name in decaying)
    assert decaying | kept == set(names.values())
    assert [g["weight_decay"] for g in parameter_groups(model, 1e-3, None)] == [1e-3, 0.0]
    assert len(parameter_groups(DenoisingModel(tiny_config(), LinearNormalizer({})), 1e-6, None)) == 1


def test_rotations_of_actions_are_not_scaled():
    rng = np.random.default_rng(0)
    obs = {key: rng.normal(size=(30, d)).astype(np.float32) for key, d in OBS_DIMS.items()}
    actions = rng.uniform(0.1, 0.4, size=(30, 10)).astype(np.float32)
    fields = fit_normalizer([Episode("demo_0", obs, actions)], tiny_config()).fields("action")
    assert fields["scale"][3:9].tolist() == [1.0] * 6
    assert fields["offset"][3:9].tolist() == [0.0] * 6
    normalized = torch.from_numpy(actions) * fields["scale"] + fields["offset"]
    for column in (0, 1, 2, 9):
        assert normalized[:, column].amin() == pytest.approx(-1, abs=1e-5)
        assert normalized[:, column].amax() == pytest.approx(1, abs=1e-5)
    two_arms = fit_normalizer([Episode("demo_0", obs, np.tile(actions, (1, 2)))], tiny_config(action_dim=20)).fields(
        "action"
    )
    assert (two_arms["scale"] == 1).nonzero().flatten().tolist() == [*range(3, 9), *range(13, 19)]


def test_curves(tmp_path):
    path = tmp_path / "loss.jsonl"
    assert read_records(path) == []
    for step in (10, 20, 30):
        append_record(path, {"step": step, "train_loss": 1.0 / step, "val_loss": 0.5 if step == 20 else None})
    path.write_text(path.read_text() + '{"step": 40, "trai')  # cut off by a kill
    assert [r["step"] for r in read_records(path)] == [10, 20, 30]
    truncate_records(path, 20)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20]
    plot_curves(read_records(path), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 0}, "max_steps must be positive"),
        ({"warmup_steps": 500, "max_steps": 500}, r"warmup_steps must be in \[0, max_steps\)"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"epochs": 3}, "unknown epochs"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict(changes)
