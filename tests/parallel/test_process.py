"""An actor finds its libraries' modules, whatever folder its driver was started in."""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

import torch

from longreel.parallel import process


def test_our_folders_are_no_modules_of_others(monkeypatch):
    root = Path(process.__file__).resolve().parents[1]
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "path", ["", str(root), *sys.path])
    assert PathFinder.find_spec("kernels", sys.path) is not None
    process.settle()
    assert PathFinder.find_spec("kernels", sys.path) is None
    assert PathFinder.find_spec("diffusers", sys.path) is not None
    assert torch.get_num_threads() == 1
