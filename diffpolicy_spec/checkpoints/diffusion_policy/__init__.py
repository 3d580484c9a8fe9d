"""Checkpoints of diffusion_policy (Chi et al. 2023).

read           a file as Parts
config         cfg.policy: class, network, conditioning, scheduler
encoder        shape_meta, and the two image encoders
names          names in its state dict
task           cfg.task: what actions mean, of which observations `obs` is joined
interpolation  OmegaConf's ${...}; arithmetic: what stands in ${eval:'...'}
"""

from diffpolicy_spec.checkpoints.diffusion_policy.read import WEIGHTS, is_diffusion_policy, read_diffusion_policy

__all__ = ["WEIGHTS", "is_diffusion_policy", "read_diffusion_policy"]
