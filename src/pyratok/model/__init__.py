"""The tokenizer: LaPQ on a video VAE, its loading and saving."""
