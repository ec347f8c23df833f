"""longreel: long videos with video diffusion transformers on many GPUs."""

__version__ = "0.1.0"
