"""Ranks that begin with their imports done, which are most of what a short training costs."""

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

import pytest

from longreel.jobs.train import launch


def forked_processes(monkeypatch: pytest.MonkeyPatch, *modules: str) -> BaseContext:
    """Forked from one that has imported these and the trainer, and done nothing else.

    The first who asks names the modules; what is missing, each process imports itself.
    """
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # DeepSpeed reads it when it is imported
    context = multiprocessing.get_context("forkserver")
    # torch's optimisers import the second
    context.set_forkserver_preload(["longreel.jobs.train.trainer", "torch._dynamo", *modules])
    forkserver.ensure_running()
    return context


def fork_ranks(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """`train` begins its ranks so, from here on."""
    forked_processes(monkeypatch, *modules)
    monkeypatch.setattr(launch, "_START", "forkserver")
