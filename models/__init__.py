"""Single-device model code: DiT, encoders, VAE, and how their weights are read."""
