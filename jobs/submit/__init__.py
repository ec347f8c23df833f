"""Renders as Ray jobs: handed to a cluster, watched from afar, ended or gone on with."""
