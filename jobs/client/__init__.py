"""Renders of a server from Python: one by one, or by the hundred."""
