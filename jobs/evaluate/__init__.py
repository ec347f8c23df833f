"""Renders measured against the world's truth."""
