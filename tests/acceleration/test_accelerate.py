"""`accelerate` on stand-ins of the three projects' live policies: the same chunk as their own loop with the same noise,
and everything else as it was."""

from __future__ import annotations

import copy
import io
import pickle
import sys
import types
import warnings

import numpy as np
import pytest
import standins
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import nn

import diffpolicy_spec as dps
from diffpolicy_spec.policies.inference.transformer import InferenceTransformer
from diffpolicy_spec.policies.inference.unet import InferenceUnet

B, T, TO, DA, DO = 2, 8, 2, 3, 4


def ddpm(n: int = 20, **settings):
    return DDPMScheduler(num_train_timesteps=n, beta_schedule="squaredcos_cap_v2", **settings)


def ddim(n: int = 20, **settings):
    return DDIMScheduler(num_train_timesteps=n, beta_schedule="squaredcos_cap_v2", **settings)


def unet_policy(mode: str = "global", scheduler=None, kind=standins.DiffusionUnetLowdimPolicy, **options):
    sizes = {"global": (DA, TO * DO, 0), "local": (DA, 0, DO), "inpainting": (DA + DO, 0, 0)}[mode]
    network = options.pop("network", None) or standins.ConditionalUnet1D(*sizes)
    return kind(network, scheduler or ddpm(), mode=mode, **options).eval()


def transformer_policy(cond: int = DO, scheduler=None, kind=standins.DiffusionTransformerLowdimPolicy, **options):
    network = standins.TransformerForDiffusion(DA, T, TO, cond, **options)
    return kind(network, scheduler or ddpm()).eval()


def lerobot_policy(scheduler=None, steps=None, **options):
    unet = standins.DiffusionConditionalUnet1d(DA, TO * DO, **options)
    return standins.DiffusionPolicy(standins.DiffusionModel(unet, scheduler or ddpm(), steps=steps)).eval()


def robomimic_policy(scheduler=None, **options):
    return standins.RolloutPolicy(standins.DiffusionPolicyUNet(scheduler or ddpm(), **options))


def chunk(policy, seed: int = 5, batch: int = B) -> torch.Tensor:
    """A chunk of any of them, for fixed observations and a seeded chain."""
    obs = torch.randn(batch, TO, DO, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(seed)
    if isinstance(policy, standins.RolloutPolicy):
        policy.start_episode()
        observed = {"object": obs[0, :, :3], "gripper": obs[0, :, 3:]}
        return torch.from_numpy(np.stack([policy(observed) for _ in range(4)]))
    if isinstance(policy, standins.DiffusionPolicy):
        policy.reset()
        return torch.stack([policy.select_action({"observation.state": obs[:, 0]}) for _ in range(4)], 1)
    with torch.no_grad():
        return policy.predict_action({"obs": obs})["action_pred"]


MAKERS = {
    "dp unet global": unet_policy,
    "dp unet local": lambda **o: unet_policy("local", **o),
    "dp unet inpainting": lambda **o: unet_policy("inpainting", **o),
    "dp unet image": lambda **o: unet_policy(kind=standins.DiffusionUnetImagePolicy, **o),
    "dp unet hybrid": lambda **o: unet_policy(kind=standins.DiffusionUnetHybridImagePolicy, **o),
    "dp transformer": transformer_policy,
    "dp transformer hybrid": lambda **o: transformer_policy(
        kind=standins.DiffusionTransformerHybridImagePolicy, causal=False, **o),
    "lerobot": lerobot_policy,
    "robomimic": robomimic_policy,
    "robomimic without ema": lambda **o: robomimic_policy(ema=False, **o),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def close(a, b, tolerance: float = 1e-5) -> bool:
    """Equal to 1e-5, of the largest number where numbers are large."""
    return float((a - b).abs().max()) < tolerance * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("name", MAKERS)
def test_the_sequential_sampler_gives_upstreams_chunk_for_the_same_seed(name: str):
    policy = MAKERS[name]()
    own = chunk(policy)
    assert dps.accelerate(policy, "ddpm") is policy
    assert close(chunk(policy), own)
    assert policy.last_sample_stats.calls.tolist() == [20] * len(policy.last_sample_stats.calls)
    assert close(chunk(policy), own), "the second chunk, with everything kept, is the same one"
    dps.decelerate(policy)
    assert torch.equal(chunk(policy), own)
    assert not hasattr(policy, "last_sample_stats")


@pytest.mark.parametrize("name", MAKERS)
def test_the_default_sampler_needs_few_calls_and_starts_anew_each_chunk(name: str):
    policy = dps.accelerate(MAKERS[name]())
    assert policy.last_sample_stats is None
    first = chunk(policy, seed=5)
    stats = policy.last_sample_stats
    assert isinstance(stats, dps.SampleStats)
    assert stats.num_steps == 20
    assert (stats.calls < 16).all()
    assert close(chunk(policy, seed=5), first), "the same seed, the same chunk"
    assert not close(chunk(policy, seed=6), first, 1e-2)


@pytest.mark.parametrize("settings", [{"prediction_type": "sample"}, {"clip_sample": False}, {"steps": 7}])
@pytest.mark.parametrize("make", [unet_policy, lerobot_policy])
def test_settings_of_the_live_scheduler_are_followed(make, settings):
    settings = dict(settings)
    steps = settings.pop("steps", None)
    policy = make(scheduler=ddpm(**settings), steps=steps)
    own = chunk(policy)
    assert close(chunk(dps.accelerate(policy, "ddpm")), own)


def test_steps_and_scheduler_may_change_while_accelerated():
    policy = dps.accelerate(unet_policy(), "ddpm")
    chunk(policy)
    policy.num_inference_steps = 10
    ours = chunk(policy)
    assert policy.last_sample_stats.num_steps == 10
    policy.noise_scheduler = ddpm(prediction_type="sample")
    other = chunk(policy)
    dps.decelerate(policy)
    assert close(chunk(policy), other)
    policy.noise_scheduler = ddpm()
    assert close(chunk(policy), ours)


# --- networks


def layout(policy):
    """How the denoiser of an accelerated policy is run."""
    owner = getattr(policy, "diffusion", getattr(policy, "policy", policy))
    return vars(owner)["_diffpolicy_spec_sampler"]._runner[1]._network


@pytest.mark.parametrize(
    ("name", "kind"),
    [("dp unet global", InferenceUnet), ("dp unet inpainting", InferenceUnet), ("lerobot", InferenceUnet),
     ("robomimic", InferenceUnet), ("dp transformer", InferenceTransformer)],
)  # fmt: skip
def test_published_networks_run_in_our_layout_on_the_live_parameters(name: str, kind):
    policy = dps.accelerate(MAKERS[name]())
    chunk(policy)
    assert isinstance(layout(policy), kind)
    live = {id(p) for p in live_network(policy).parameters()}
    assert {id(p) for p in layout(policy).network.parameters()} <= live


def live_network(policy) -> nn.Module:
    if isinstance(policy, standins.DiffusionPolicy):
        return policy.diffusion.unet
    if isinstance(policy, standins.RolloutPolicy):
        return policy.policy.ema.averaged_model["policy"]["noise_pred_net"]
    return policy.model


def halve(network):
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(0.5)


def load(network):
    network.load_state_dict({name: value * 0.5 for name, value in network.state_dict().items()})


def assign(network):
    network.load_state_dict({n: v * (0.5 if v.is_floating_point() and v.isfinite().all() else 1)
                             for n, v in network.state_dict().items()}, assign=True)  # fmt: skip


def write_unseen(network):
    for p in network.parameters():
        p.data.mul_(0.5)


@pytest.mark.parametrize("change", [halve, load, assign, write_unseen])
@pytest.mark.parametrize("name", ["dp unet global", "dp transformer", "lerobot", "robomimic"])
def test_other_weights_are_seen(name: str, change):
    policy = dps.accelerate(MAKERS[name](), "ddpm")
    before = chunk(policy)
    change(live_network(policy))
    after = chunk(policy)
    assert not close(before, after, 1e-3)
    assert not isinstance(layout(policy), nn.Module)
    assert type(layout(policy)) in (InferenceUnet, InferenceTransformer)
    assert close(chunk(dps.decelerate(policy)), after)


def test_a_network_put_in_the_place_of_another_is_seen():
    policy = dps.accelerate(unet_policy(), "ddpm")
    chunk(policy)
    policy.model = standins.ConditionalUnet1D(DA, TO * DO)
    whole = chunk(policy)
    policy.model.final_conv[1] = nn.Conv1d(16, DA, 1)
    part = chunk(policy)
    assert not close(whole, part, 1e-3)
    assert close(chunk(dps.decelerate(policy)), part)


def test_the_averaged_network_of_robomimic_is_followed():
    policy = dps.accelerate(robomimic_policy(), "ddpm")
    before = chunk(policy)
    policy.policy.ema.averaged_model = copy.deepcopy(policy.policy.nets)
    after = chunk(policy)
    assert not close(before, after, 1e-3)
    assert close(chunk(dps.decelerate(policy)), after)


def hooked(network):
    network.final_conv.register_forward_hook(lambda module, args, out: 2.0 * out)


def another_activation(network):
    network.final_conv[0].block[2] = nn.SiLU()


class Louder(standins.ConditionalUnet1D):
    def forward(self, *args, **kwargs):
        return 2.0 * super().forward(*args, **kwargs)


@pytest.mark.parametrize("change", [hooked, another_activation, None])
@pytest.mark.parametrize("when", ["before", "after"])
def test_networks_that_are_not_as_published_are_called_as_they_are(change, when: str):
    policy = unet_policy() if change else unet_policy(network=Louder(DA, TO * DO))
    if when == "after":
        dps.accelerate(policy, "ddpm")
        chunk(policy)
    if change is not None:
        change(policy.model)
    if when == "before":
        dps.accelerate(policy, "ddpm")
    ours = chunk(policy)
    assert not isinstance(layout(policy), InferenceUnet)
    assert close(chunk(dps.decelerate(policy)), ours)


def test_a_network_of_ones_own_inside_a_known_policy():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.read = nn.Linear(T * DA + TO * DO, T * DA)

        def forward(self, sample, timestep, local_cond=None, global_cond=None):
            return self.read(torch.cat([sample.flatten(1), global_cond], 1)).view_as(sample)

    policy = unet_policy(network=Own())
    own = chunk(policy)
    assert close(chunk(dps.accelerate(policy, "ddpm")), own)
    chunk(dps.accelerate(policy))
    assert (policy.last_sample_stats.calls < 20).all()


class Compiled(nn.Module):
    """As torch.compile wraps a module."""

    def __init__(self, inner):
        super().__init__()
        self._orig_mod = inner

    def forward(self, *args, **kwargs):
        raise AssertionError("the wrapped network is what is read")


def test_compiled_networks_are_unwrapped():
    policy = lerobot_policy()
    own = chunk(policy)
    policy.diffusion.unet = Compiled(policy.diffusion.unet)
    assert close(chunk(dps.accelerate(policy, "ddpm")), own)


def test_float64_networks_are_called_as_they_are():
    policy = transformer_policy()
    policy.model = policy.model.double()
    policy.model.time_emb = nn.Sequential(policy.model.time_emb, Double())
    seen = []
    policy.model.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    assert chunk(dps.accelerate(policy)).dtype == torch.float32
    assert set(seen) == {torch.float64}


class Double(nn.Module):
    def forward(self, x):
        return x.double()


# --- the callers' ways


@pytest.mark.parametrize("name", ["dp unet global", "dp unet inpainting", "dp transformer", "lerobot", "robomimic"])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("runtime", [None, dps.RuntimeConfig("static")])
def test_batches_and_runtimes(name: str, batch: int, runtime):
    policy = dps.accelerate(MAKERS[name](), "ddpm", runtime=runtime)
    ours = chunk(policy, batch=batch)
    again = chunk(policy, batch=batch)
    own = chunk(dps.decelerate(policy), batch=batch)
    assert close(ours, own)
    assert close(again, own)


@pytest.mark.parametrize("name", ["dp unet global", "dp transformer", "lerobot", "robomimic"])
def test_inference_mode_and_ordinary_mode_by_turns(name: str):
    policy = dps.accelerate(MAKERS[name](), runtime=dps.RuntimeConfig("static"))
    ordinary = chunk(policy)
    with torch.inference_mode():
        within = chunk(policy)
    halve(live_network(policy))
    with torch.inference_mode():
        chunk(policy)
    assert close(within, ordinary)
    chunk(policy)


def test_no_gradient_is_kept_from_chunk_to_chunk():
    policy = dps.accelerate(unet_policy(), "ddpm")
    obs = {"obs": torch.randn(B, TO, DO)}
    for _ in range(3):
        assert not policy.predict_action(obs)["action"].requires_grad
    assert all(p.requires_grad for p in policy.parameters())
    assert all(p.grad is None for p in policy.parameters())


def test_autocast_runs_the_network_in_the_callers_dtype_and_the_sampler_in_float32():
    policy = unet_policy()
    seen = []
    policy.model.final_conv[1].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own = chunk(policy)
    plain = chunk(policy)
    dps.accelerate(policy, "ddpm")
    seen.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = chunk(policy)
        assert torch.is_autocast_enabled("cpu")
    assert set(seen) == {torch.bfloat16}
    assert close(ours, own, 0.1)
    assert close(chunk(policy), plain), "outside autocast it is the float32 network again"


def test_given_noise_and_generators():
    policy = lerobot_policy()
    noise, state = torch.randn(B, T, DA), torch.randn(B, TO * DO)
    for options in ({"noise": noise}, {"generator": 7}):
        results = []
        for accelerate in (False, True):
            given = dict(options)
            if "generator" in given:
                given["generator"] = torch.Generator().manual_seed(7)
            with dps.accelerated(policy, "ddpm") if accelerate else torch.no_grad():
                torch.manual_seed(3)
                results.append(policy.diffusion.conditional_sample(B, global_cond=state, **given))
        assert close(*results)
    dps.accelerate(policy)
    assert policy.diffusion.conditional_sample(B, state, None, noise).shape == (B, T, DA)
    with pytest.raises(ValueError, match="horizon"):
        policy.diffusion.conditional_sample(B, state, noise=noise[:, 1:])


def test_the_encoder_is_asked_once_a_chunk():
    for policy, count in (
        (unet_policy(), lambda p: p.encoded),
        (lerobot_policy(), lambda p: p.diffusion.encoded),
        (robomimic_policy(), lambda p: p.policy.ema.averaged_model["policy"]["obs_encoder"].encoded),
    ):
        chunk(dps.accelerate(policy))
        assert count(policy) == 1


def test_deterministic_chains_are_told_about():
    for policy in (unet_policy(scheduler=ddim()), lerobot_policy(ddim()), robomimic_policy(ddim())):
        own = chunk(policy)
        with pytest.raises(dps.AccelerateError, match=r'nothing random.*SamplerConfig\("speculative"\)'):
            dps.accelerate(policy)
        assert torch.equal(chunk(policy), own), "a refused policy is as it was"
        assert close(chunk(dps.accelerate(policy, "ddim")), own)
        chunk(dps.accelerate(policy, dps.SamplerConfig("speculative")))
        assert policy.last_sample_stats.num_steps == 20, "the DDPM chain of all training timesteps"
        assert (policy.last_sample_stats.calls < 16).all()


def test_ddim_with_noise_is_speculated_on_as_it_is():
    policy = unet_policy(scheduler=ddim(), steps=10, eta=0.7)
    own = chunk(policy)
    assert close(chunk(dps.accelerate(policy, "ddim")), own)
    chunk(dps.accelerate(policy))
    assert policy.last_sample_stats.num_steps == 10
    policy.kwargs = {"eta": 0.0}
    with pytest.raises(dps.AccelerateError, match="nothing random"):
        chunk(policy)


def test_keyword_arguments_of_the_step_that_are_not_known():
    policy = unet_policy(scheduler=ddim(), use_clipped_model_output=True)
    with pytest.raises(dps.AccelerateError, match="use_clipped_model_output=True"):
        dps.accelerate(policy, "ddim")


def test_schedulers_that_do_not_do_what_they_say():
    class Hot(DDPMScheduler):
        def step(self, *args, **kwargs):
            out = super().step(*args, **kwargs)
            out.prev_sample = 1.01 * out.prev_sample
            return out

    with pytest.raises(dps.AccelerateError, match="Hot"):
        dps.accelerate(unet_policy(scheduler=Hot.from_config(ddpm().config)))
    Hot.__name__ = "DDPMScheduler"
    with pytest.raises(dps.AccelerateError, match="its step at timestep"):
        dps.accelerate(unet_policy(scheduler=Hot.from_config(ddpm().config)))
    with pytest.raises(dps.AccelerateError, match="DPMSolverMultistepScheduler"):
        dps.accelerate(lerobot_policy(DPMSolverMultistepScheduler()))


def test_dropout_that_is_active_is_refused_and_only_then():
    policy = dps.accelerate(transformer_policy(), "ddpm")
    own = chunk(policy)
    policy.train()
    with pytest.raises(dps.AccelerateError, match=r"training mode.*policy\.eval\(\)"):
        chunk(policy)
    policy.eval()
    assert close(chunk(policy), own)
    unet = dps.accelerate(unet_policy(), "ddpm").train()
    chunk(unet)
    assert unet.model.training, "the live network's mode is its own"
    robomimic = dps.accelerate(robomimic_policy())
    robomimic.policy.nets.train()
    with pytest.raises(dps.AccelerateError, match="set_eval"):
        robomimic.policy._get_action_trajectory({})


def test_a_network_that_is_not_finite_is_an_error():
    policy = dps.accelerate(unet_policy())
    with torch.no_grad():
        policy.model.final_conv[1].bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="NaN"):
        chunk(policy)


# --- on and off


def test_nothing_is_added_that_others_see():
    for name in MAKERS:
        policy = MAKERS[name]()
        owner = getattr(policy, "diffusion", getattr(policy, "policy", policy))
        module = policy if isinstance(policy, nn.Module) else owner.nets
        before = (list(module.state_dict()), [n for n, _ in module.named_modules()], type(policy).__name__,
                  type(policy).__module__, repr(policy) if isinstance(policy, nn.Module) else "")  # fmt: skip
        kinds, trainable = (type(policy), type(owner)), [p.requires_grad for p in module.parameters()]
        chunk(dps.accelerate(policy))
        after = (list(module.state_dict()), [n for n, _ in module.named_modules()], type(policy).__name__,
                 type(policy).__module__, repr(policy) if isinstance(policy, nn.Module) else "")  # fmt: skip
        assert before == after
        assert trainable == [p.requires_grad for p in module.parameters()]
        assert isinstance(policy, kinds[0])
        assert isinstance(owner, kinds[1])
        dps.decelerate(policy)
        assert (type(policy), type(owner)) == kinds
        assert not [key for thing in (policy, owner) for key in vars(thing) if "diffpolicy" in key]


@pytest.fixture
def importable(monkeypatch):
    """The stand-ins' modules can be imported, as a pickle wants to."""
    made = {}
    for kind in [k for k in vars(standins).values() if isinstance(k, type) and k.__module__ != "standins"]:
        parts = kind.__module__.split(".")
        if parts[0] in ("diffusion_policy", "lerobot", "robomimic"):
            for i in range(1, len(parts) + 1):
                name = ".".join(parts[:i])
                if i == len(parts) or name not in sys.modules:
                    monkeypatch.setitem(sys.modules, name, made.setdefault(name, types.ModuleType(name)))
            setattr(made[kind.__module__], kind.__name__, kind)


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize("name", ["dp unet global", "dp transformer", "lerobot", "robomimic"])
def test_pickles_are_those_of_the_policy_as_it_was(name: str):
    policy = MAKERS[name]()
    own = chunk(policy)
    before = pickle.dumps(policy)
    chunk(dps.accelerate(policy, "ddpm"))
    if not isinstance(policy, standins.DiffusionPolicy):  # whose queues are used up
        assert b"diffpolicy_spec" not in pickle.dumps(policy)
    restored = pickle.loads(pickle.dumps(policy))
    assert type(restored) is type(pickle.loads(before))
    assert not hasattr(restored, "last_sample_stats")
    assert torch.equal(chunk(restored), own)
    file = io.BytesIO()
    torch.save(policy, file)
    file.seek(0)
    assert torch.equal(chunk(torch.load(file, weights_only=False)), own)


@pytest.mark.parametrize("name", ["dp unet global", "dp transformer", "lerobot", "robomimic"])
def test_a_deep_copy_is_accelerated_and_has_weights_of_its_own(name: str):
    policy = dps.accelerate(MAKERS[name](), "ddpm")
    own = chunk(policy)
    twin = copy.deepcopy(policy)
    assert twin.last_sample_stats is None
    assert close(chunk(twin), own)
    assert twin.last_sample_stats.calls[0] == 20
    halve(live_network(twin))
    assert not close(chunk(twin), own, 1e-3)
    assert close(chunk(policy), own)
    assert close(chunk(dps.decelerate(twin)), chunk(dps.accelerate(twin, "ddpm")))


def test_accelerated_twice_is_accelerated_once():
    policy = lerobot_policy()
    kind, inner = type(policy), type(policy.diffusion)
    dps.accelerate(dps.accelerate(policy, "ddpm"))
    chunk(policy)
    assert policy.last_sample_stats.calls.max() < 16
    dps.decelerate(policy)
    assert (type(policy), type(policy.diffusion)) == (kind, inner)
    assert dps.decelerate(policy) is policy


def test_a_with_block_leaves_the_policy_as_it_was():
    policy = unet_policy()
    kind, own = type(policy), chunk(policy)
    with dps.accelerated(policy, "ddpm") as same:
        assert same is policy
        chunk(policy)
    assert type(policy) is kind
    assert torch.equal(chunk(policy), own)
    dps.accelerate(policy, "ddpm")
    with dps.accelerated(policy):
        chunk(policy)
        assert policy.last_sample_stats.calls.max() < 16
    chunk(policy)
    assert policy.last_sample_stats.calls.max() == 20
    with pytest.raises(ZeroDivisionError), dps.accelerated(dps.decelerate(policy)):
        _ = 1 / 0
    assert type(policy) is kind


def test_the_algo_alone_and_the_policy_around_it():
    policy = robomimic_policy()
    dps.accelerate(policy.policy, "ddpm")
    assert not hasattr(policy, "last_sample_stats")
    chunk(policy)
    assert policy.policy.last_sample_stats.calls[0] == 20
    dps.accelerate(policy)
    chunk(policy)
    assert policy.last_sample_stats is policy.policy.last_sample_stats


def test_what_is_not_known_is_refused_with_the_way_out():
    class Mine(standins.DiffusionUnetLowdimPolicy):
        def conditional_sample(self, *args, **kwargs):
            return super().conditional_sample(*args, **kwargs)

    class Observing(standins.DiffusionUnetLowdimPolicy):
        def predict_action(self, obs_dict):
            return super().predict_action(obs_dict)

    for thing in (object(), nn.Linear(2, 2), standins.RolloutPolicy(nn.Linear(2, 2))):
        with pytest.raises(dps.AccelerateError, match=r"LeRobot's DiffusionPolicy; .*DenoisingLoop.*ten lines"):
            dps.accelerate(thing)
    with pytest.raises(dps.AccelerateError, match=r"conditional_sample of its own.*Mine.*DenoisingLoop"):
        dps.accelerate(unet_policy(kind=Mine))
    policy = unet_policy()
    policy.conditional_sample = lambda *args, **kwargs: None
    with pytest.raises(dps.AccelerateError, match="the object itself"):
        dps.accelerate(policy)
    assert isinstance(dps.AccelerateError("..."), TypeError)
    own = unet_policy(kind=Observing)
    plain = chunk(own)
    assert close(chunk(dps.accelerate(own, "ddpm")), plain), "a subclass that keeps the loop is served"
    with pytest.raises(ValueError, match="unknown sampling method"):
        dps.accelerate(own, "quick")


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chunk(dps.accelerate(unet_policy()))
