"""Layers that are not specific to one VAE: attention to text, grid resampling, low-rank adapters."""
