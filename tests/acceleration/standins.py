"""Stand-ins for the live policies of LeRobot, diffusion_policy and robomimic: their published attributes, names and
call contracts, around small networks. They pretend to be of those packages, which CI does not have.
"""

from __future__ import annotations

import math
from collections import deque
from types import SimpleNamespace

import torch
from torch import Tensor, nn


def of(module: str):
    """Say where a class comes from."""

    def mark(kind: type) -> type:
        kind.__module__, kind.__qualname__ = module, kind.__name__
        return kind

    return mark


class Embedding(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, t: Tensor) -> Tensor:
        half = self.dim // 2
        rates = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / (half - 1)))
        angles = t[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, kernel: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(n_in, n_out, kernel, padding=kernel // 2), nn.GroupNorm(8, n_out), nn.Mish()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class Residual(nn.Module):
    """Named as diffusion_policy and robomimic name it, or as LeRobot does."""

    def __init__(self, n_in: int, n_out: int, cond: int, kernel: int, scales: bool, lerobot: bool) -> None:
        super().__init__()
        first, second = Block(n_in, n_out, kernel), Block(n_out, n_out, kernel)
        if lerobot:
            self.conv1, self.conv2 = first, second
        else:
            self.blocks = nn.ModuleList([first, second])
        self.scales, self.channels = scales, n_out
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(cond, n_out * (2 if scales else 1)))
        self.residual_conv = nn.Conv1d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        first, second = self.blocks if hasattr(self, "blocks") else (self.conv1, self.conv2)
        film = self.cond_encoder(cond)[:, :, None]
        h = first(x)
        h = film[:, : self.channels] * h + film[:, self.channels :] if self.scales else h + film
        return second(h) + self.residual_conv(x)


class Bare(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Unet(nn.Module):
    """The published U-Net."""

    def __init__(
        self, D: int, cond: int, local: int = 0, *, dims=(16, 32), embed: int = 16, kernel: int = 3, scales=True,
        lerobot: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()

        def residual(n_in: int, n_out: int) -> Residual:
            return Residual(n_in, n_out, embed + cond, kernel, scales, lerobot)

        wrap = (lambda conv: conv) if lerobot else Bare
        self.diffusion_step_encoder = nn.Sequential(
            Embedding(embed), nn.Linear(embed, 4 * embed), nn.Mish(), nn.Linear(4 * embed, embed)
        )
        self.local_cond_encoder = nn.ModuleList(residual(local, dims[0]) for _ in range(2)) if local else None
        pairs = list(zip((D, *dims[:-1]), dims, strict=True))
        self.down_modules = nn.ModuleList(
            nn.ModuleList([residual(i, o), residual(o, o),
                           wrap(nn.Conv1d(o, o, 3, 2, 1)) if n < len(dims) - 1 else nn.Identity()])
            for n, (i, o) in enumerate(pairs)
        )  # fmt: skip
        self.mid_modules = nn.ModuleList([residual(dims[-1], dims[-1]) for _ in range(2)])
        self.up_modules = nn.ModuleList(
            nn.ModuleList([residual(2 * o, i), residual(i, i), wrap(nn.ConvTranspose1d(i, i, 4, 2, 1))])
            for i, o in reversed(pairs[1:])
        )
        self.final_conv = nn.Sequential(Block(dims[0], dims[0], kernel), nn.Conv1d(dims[0], D, 1))

    def _run(self, x: Tensor, timestep, local: Tensor | None, cond: Tensor | None) -> Tensor:
        t = torch.as_tensor(timestep, device=x.device).expand(len(x))
        e = self.diffusion_step_encoder(t)
        e = e if cond is None else torch.cat([e, cond], dim=-1)
        beside = None if local is None else self.local_cond_encoder[0](local.transpose(1, 2), e)
        x, kept = x.transpose(1, 2), []
        for n, (first, second, down) in enumerate(self.down_modules):
            x = first(x, e)
            x = second(x + beside if n == 0 and beside is not None else x, e)
            kept.append(x)
            x = down(x)
        for module in self.mid_modules:
            x = module(x, e)
        for first, second, up in self.up_modules:
            x = up(second(first(torch.cat([x, kept.pop()], dim=1), e), e))
        return self.final_conv(x).transpose(1, 2)


@of("diffusion_policy.model.diffusion.conditional_unet1d")
class ConditionalUnet1D(Unet):
    def forward(self, sample, timestep, local_cond=None, global_cond=None, **kwargs):
        return self._run(sample, timestep, local_cond, global_cond)


@of("lerobot.policies.diffusion.modeling_diffusion")
class DiffusionConditionalUnet1d(Unet):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs, lerobot=True)

    def forward(self, x, timestep, global_cond=None):
        return self._run(x, timestep, None, global_cond)


@of("diffusion_policy.model.diffusion.transformer_for_diffusion")
class TransformerForDiffusion(nn.Module):
    """The published Transformer, with dropout."""

    def __init__(self, D: int, T: int, To: int, cond: int, *, width: int = 16, layers: int = 2, causal=True) -> None:
        super().__init__()
        self._dummy_variable = nn.Parameter(torch.zeros(0))
        self.input_emb, self.pos_emb = nn.Linear(D, width), nn.Parameter(torch.randn(1, T, width))
        self.drop = nn.Dropout(0)
        self.time_emb, self.cond_obs_emb = Embedding(width), nn.Linear(cond, width) if cond else None
        tokens = 1 + (To if cond else 0)
        self.cond_pos_emb = nn.Parameter(torch.randn(1, tokens, width))
        self.encoder = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        layer = nn.TransformerDecoderLayer(width, 2, 4 * width, 0.3, "gelu", batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, layers)
        self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, D)
        t = torch.arange(T)[:, None]
        self.mask = self.memory_mask = None
        if causal:
            del self.mask, self.memory_mask
            blocked = [t < t.T, t < torch.arange(tokens) - 1]
            masks = [torch.zeros(b.shape).masked_fill(b, float("-inf")) for b in blocked]
            self.register_buffer("mask", masks[0])
            self.register_buffer("memory_mask", masks[1] if cond else None)
        self.time_as_cond, self.obs_as_cond, self.encoder_only = True, bool(cond), False

    def forward(self, sample, timestep, cond=None, **kwargs):
        tokens = self.time_emb(torch.as_tensor(timestep, device=sample.device).expand(len(sample)))[:, None]
        if cond is not None:
            tokens = torch.cat([tokens, self.cond_obs_emb(cond)], dim=1)
        memory = self.encoder(self.drop(tokens + self.cond_pos_emb))
        x = self.drop(self.input_emb(sample) + self.pos_emb)
        return self.head(self.ln_f(self.decoder(x, memory, tgt_mask=self.mask, memory_mask=self.memory_mask)))


class _Loop(nn.Module):
    """What diffusion_policy's classes share; each of them has its own loop upstream."""

    def __init__(self, model, noise_scheduler, D=3, Do=4, T=8, To=2, Ta=4, steps=None, mode="global", **kwargs) -> None:
        super().__init__()
        self.model, self.noise_scheduler, self.kwargs = model, noise_scheduler, kwargs
        self.D, self.Do, self.T, self.To, self.Ta, self.mode = D, Do, T, To, Ta, mode
        self.num_inference_steps = steps or noise_scheduler.config.num_train_timesteps
        self.encoder, self.encoded = nn.Linear(Do, Do), 0

    def _observe(self, obs: Tensor) -> Tensor:
        self.encoded += 1
        return self.encoder(obs)

    def _finish(self, plan: Tensor) -> dict[str, Tensor]:
        action = 2.0 * plan[..., : self.D]  # "unnormalised"
        return {"action": action[:, self.To - 1 : self.To - 1 + self.Ta], "action_pred": action}

    def _sample(self, data, mask, call, generator, **kwargs):
        x = torch.randn(size=data.shape, dtype=data.dtype, device=data.device, generator=generator)
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            x[mask] = data[mask]
            x = self.noise_scheduler.step(call(x, t), t, x, generator=generator, **kwargs).prev_sample
        x[mask] = data[mask]
        return x


@of("diffusion_policy.policy.diffusion_unet_lowdim_policy")
class DiffusionUnetLowdimPolicy(_Loop):
    def conditional_sample(
        self, condition_data, condition_mask, local_cond=None, global_cond=None, generator=None, **kwargs
    ):
        def call(x, t):
            return self.model(x, t, local_cond=local_cond, global_cond=global_cond)

        return self._sample(condition_data, condition_mask, call, generator, **kwargs)

    def predict_action(self, obs_dict):
        obs = self._observe(obs_dict["obs"])
        B, local, cond = len(obs), None, None
        data = torch.zeros(B, self.T, self.D + (self.Do if self.mode == "inpainting" else 0))
        mask = torch.zeros_like(data, dtype=torch.bool)
        if self.mode == "global":
            cond = obs[:, : self.To].reshape(B, -1)
        elif self.mode == "local":
            local = torch.zeros(B, self.T, self.Do)
            local[:, : self.To] = obs[:, : self.To]
        else:
            data[:, : self.To, self.D :], mask[:, : self.To, self.D :] = obs[:, : self.To], True
        plan = self.conditional_sample(data, mask, local_cond=local, global_cond=cond, **self.kwargs)
        return self._finish(plan)


@of("diffusion_policy.policy.diffusion_unet_hybrid_image_policy")
class DiffusionUnetHybridImagePolicy(_Loop):
    conditional_sample = DiffusionUnetLowdimPolicy.conditional_sample
    predict_action = DiffusionUnetLowdimPolicy.predict_action


@of("diffusion_policy.policy.diffusion_unet_image_policy")
class DiffusionUnetImagePolicy(_Loop):
    conditional_sample = DiffusionUnetLowdimPolicy.conditional_sample
    predict_action = DiffusionUnetLowdimPolicy.predict_action


@of("diffusion_policy.policy.diffusion_transformer_lowdim_policy")
class DiffusionTransformerLowdimPolicy(_Loop):
    def conditional_sample(self, condition_data, condition_mask, cond=None, generator=None, **kwargs):
        return self._sample(condition_data, condition_mask, lambda x, t: self.model(x, t, cond), generator, **kwargs)

    def predict_action(self, obs_dict):
        obs = self._observe(obs_dict["obs"])
        data = torch.zeros(len(obs), self.T, self.D)
        plan = self.conditional_sample(data, data.bool(), cond=obs[:, : self.To], **self.kwargs)
        return self._finish(plan)


@of("diffusion_policy.policy.diffusion_transformer_hybrid_image_policy")
class DiffusionTransformerHybridImagePolicy(_Loop):
    conditional_sample = DiffusionTransformerLowdimPolicy.conditional_sample
    predict_action = DiffusionTransformerLowdimPolicy.predict_action


@of("lerobot.policies.diffusion.modeling_diffusion")
class DiffusionModel(nn.Module):
    def __init__(self, unet, noise_scheduler, D=3, T=8, To=2, Ta=4, steps=None) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            horizon=T, n_obs_steps=To, n_action_steps=Ta, action_feature=SimpleNamespace(shape=(D,))
        )
        self.unet, self.noise_scheduler, self.encoded = unet, noise_scheduler, 0
        self.num_inference_steps = steps or noise_scheduler.config.num_train_timesteps

    def conditional_sample(self, batch_size, global_cond=None, generator=None, noise=None):
        shape = (batch_size, self.config.horizon, self.config.action_feature.shape[0])
        parameter = next(self.parameters())
        x = noise
        if x is None:
            x = torch.randn(size=shape, dtype=parameter.dtype, device=parameter.device, generator=generator)
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            out = self.unet(x, torch.full(x.shape[:1], t, dtype=torch.long), global_cond=global_cond)
            x = self.noise_scheduler.step(out, t, x, generator=generator).prev_sample
        return x

    def generate_actions(self, batch, noise=None):
        self.encoded += 1
        state = batch["observation.state"]
        plan = self.conditional_sample(len(state), global_cond=state.flatten(1), noise=noise)
        first = self.config.n_obs_steps - 1
        return plan[:, first : first + self.config.n_action_steps]


@of("lerobot.policies.diffusion.modeling_diffusion")
class DiffusionPolicy(nn.Module):
    def __init__(self, diffusion) -> None:
        super().__init__()
        self.diffusion = diffusion
        self.reset()

    def reset(self) -> None:
        config = self.diffusion.config
        self._queues = {"observation.state": deque(maxlen=config.n_obs_steps), "action": deque()}

    @torch.no_grad()
    def select_action(self, batch, noise=None):
        queue = self._queues["observation.state"]
        queue.append(batch["observation.state"])
        while len(queue) < queue.maxlen:
            queue.append(batch["observation.state"])
        if not self._queues["action"]:
            actions = self.diffusion.generate_actions({"observation.state": torch.stack(list(queue), 1)}, noise=noise)
            self._queues["action"].extend(actions.transpose(0, 1))
        return self._queues["action"].popleft()


@of("robomimic.models.diffusion_policy_nets")
class RobomimicUnet(Unet):
    def forward(self, sample, timestep, global_cond=None):
        return self._run(sample, timestep, None, global_cond)


RobomimicUnet.__name__ = RobomimicUnet.__qualname__ = "ConditionalUnet1D"


class RobomimicEncoder(nn.Module):
    """ObservationGroupEncoder: keyword groups, one step a row."""

    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        self.sizes, self.encoded = sizes, 0
        self.net = nn.Linear(sum(sizes.values()), 4)

    def forward(self, **inputs):
        assert inputs["goal"] is None
        self.encoded += 1
        return self.net(torch.cat([inputs["obs"][key] for key in self.sizes], dim=-1))


@of("robomimic.algo.diffusion_policy")
class DiffusionPolicyUNet:
    """Not a module: it holds `nets`."""

    def __init__(self, noise_scheduler, D=3, T=8, To=2, Ta=4, ema=True) -> None:
        self.obs_shapes = {"object": [3], "gripper": [1]}
        self.ac_dim, self.device, self.noise_scheduler = D, torch.device("cpu"), noise_scheduler
        sizes = {key: shape[0] for key, shape in self.obs_shapes.items()}

        def nets():
            parts = {"obs_encoder": RobomimicEncoder(sizes), "noise_pred_net": RobomimicUnet(D, 4 * To)}
            return nn.ModuleDict({"policy": nn.ModuleDict(parts)}).eval()

        self.nets = nets()
        self.ema = SimpleNamespace(averaged_model=nets()) if ema else None
        n = noise_scheduler.config.num_train_timesteps
        ddim = type(noise_scheduler).__name__ == "DDIMScheduler"
        self.algo_config = SimpleNamespace(
            horizon=SimpleNamespace(observation_horizon=To, action_horizon=Ta, prediction_horizon=T),
            ddpm=SimpleNamespace(enabled=not ddim, num_inference_timesteps=n),
            ddim=SimpleNamespace(enabled=ddim, num_inference_timesteps=10),
        )
        self.action_queue = deque()

    def reset(self):
        self.action_queue = deque()

    def set_eval(self):
        self.nets.eval()

    def get_action(self, obs_dict, goal_dict=None):
        if not self.action_queue:
            self.action_queue.extend(self._get_action_trajectory(obs_dict=obs_dict)[0])
        return self.action_queue.popleft().unsqueeze(0)

    def _get_action_trajectory(self, obs_dict, goal_dict=None):
        assert not self.nets.training
        config = self.algo_config
        nets = (self.nets if self.ema is None else self.ema.averaged_model)["policy"]
        obs = {k: v if v.ndim == 3 else v[:, None] for k, v in obs_dict.items() if k in self.obs_shapes}
        B, To = next(iter(obs.values())).shape[:2]
        features = nets["obs_encoder"](obs={k: v.flatten(0, 1) for k, v in obs.items()}, goal=goal_dict)
        cond = features.reshape(B, To, -1).flatten(1)
        x = torch.randn((B, config.horizon.prediction_horizon, self.ac_dim), device=self.device)
        chosen = config.ddpm if config.ddpm.enabled else config.ddim
        self.noise_scheduler.set_timesteps(chosen.num_inference_timesteps)
        for k in self.noise_scheduler.timesteps:
            out = nets["noise_pred_net"](sample=x, timestep=k, global_cond=cond)
            x = self.noise_scheduler.step(model_output=out, timestep=k, sample=x).prev_sample
        first = config.horizon.observation_horizon - 1
        return x[:, first : first + config.horizon.action_horizon]


@of("robomimic.algo.algo")
class RolloutPolicy:
    def __init__(self, policy) -> None:
        self.policy = policy

    def start_episode(self):
        self.policy.set_eval()
        self.policy.reset()

    def __call__(self, ob):
        obs = {key: torch.as_tensor(value)[None].float() for key, value in ob.items()}
        with torch.no_grad():
            return self.policy.get_action(obs_dict=obs)[0].numpy()
