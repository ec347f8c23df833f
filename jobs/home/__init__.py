"""Renders that outlive their processes: each has a folder, and the folders have a home."""
