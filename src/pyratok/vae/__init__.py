"""Causal video VAEs: their taps feed the quantizer, their decoders turn latents into video."""
