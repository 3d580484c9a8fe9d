"""Diffusion Policy action chunks from the exact DDPM distribution, in a handful of sequential network calls."""
