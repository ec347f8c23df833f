"""Single-device model code: the DiT, the text and image encoders, the VAE, and how their weights are read."""
