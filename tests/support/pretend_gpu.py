"""A GPU that is this CPU: values are real, while devices are checked and waits for the GPU noted.

Its tensors are a CPU's to C++ and a GPU's to Python: our code decides by what Python says. Kernels
of GPUs are their definitions here; tests/kernels compares the two.
"""

import contextlib
import sys
from dataclasses import is_dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from longreel.kernels import attention, attention_triton, norm, norm_triton, pooled, pooled_triton
from longreel.kernels.rope import rotate

aten = torch.ops.aten


class OnGpu(torch.Tensor):
    """`host` holds the values."""

    @staticmethod
    def __new__(cls, host, where):
        return torch.Tensor._make_wrapper_subclass(
            cls, host.shape, strides=host.stride(), dtype=host.dtype, device="cpu"
        )

    def __init__(self, host, where):
        self.host, self.where = host, torch.device(where)

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: self.where)
    is_cuda = property(lambda self: True)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return Gpus.now.run(func, args, kwargs or {})

    def data_ptr(self):
        return self.host.data_ptr()

    def numpy(self):
        raise TypeError("a tensor of a GPU has no array")

    def tolist(self):
        return self.cpu().tolist()

    def cpu(self):
        return self.to("cpu")

    def __repr__(self):
        return f"OnGpu({tuple(self.shape)}, {self.dtype})"

    def to(self, *args, copy=False, **kwargs):
        named = [torch.empty(0, dtype=x.dtype) if isinstance(x, OnGpu) else x for x in args]
        device, dtype, _, _ = torch._C._nn._parse_to(*named, **kwargs)
        x = self if dtype in (None, self.dtype) else torch.Tensor.to(self, dtype)
        if any(isinstance(y, OnGpu) for y in args) or device is None or device.type == "cuda":
            return x
        Gpus.now.note("to the host")
        with bare():
            return x.host.clone()


@contextlib.contextmanager
def bare():
    with unset_fake_temporarily(), _disable_current_modes():
        yield


class Gpus(TorchDispatchMode):
    """Every operation of this thread goes through `run`."""

    now = None

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def note(self, what):
        frame = sys._getframe()
        while frame and "/longreel/" not in frame.f_code.co_filename:
            frame = frame.f_back
        place = frame.f_code.co_filename.rpartition("/longreel/")[2] if frame else ""
        self.waits.append((what, place))

    def run(self, func, args, kwargs):
        leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = [x for x in leaves if isinstance(x, OnGpu)]
        wanted = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        copies = func in (aten._to_copy.default, aten.copy_.default)
        if there and not copies:
            for x in leaves:
                same = isinstance(x, OnGpu) and x.where == there[0].where
                assert same or x.ndim == 0, f"{func}: {tuple(x.shape)} is on another device"
        if there and func in (aten._local_scalar_dense.default, aten.nonzero.default):
            self.note(str(func))
        if func is aten._to_copy.default and not there and wanted and wanted.type == "cuda":
            self.note("from the host")
        if func is aten._to_copy.default and there and wanted and wanted.type == "cpu":
            wanted = None  # of another dtype: C++ takes it for a CPU's
        names, args_before = {id(x.host): x for x in there}, args
        args, kwargs = tree_map_only(OnGpu, lambda x: x.host, (args, kwargs))
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        with bare():
            out = func(*args, **kwargs)
            if func is aten.copy_.default:
                return args_before[0]
            at = wanted or (there[0].where if there else torch.device("cpu"))
            if at.type == "cpu":
                return out
            # of an operation in place the very tensor, as autograd expects
            known = {key: x for key, x in names.items() if x.where == at}
            return tree_map_only(
                torch.Tensor, lambda x: known[id(x)] if id(x) in known else OnGpu(x, at), out
            )


def _host(x):
    if isinstance(x, OnGpu):
        return x.host
    if isinstance(x, tuple):
        return tuple(_host(y) for y in x)
    if is_dataclass(x):  # lists of tiles
        held = {k: v.host for k, v in vars(x).items() if isinstance(v, OnGpu)}
        return replace(x, **held)
    return x


def _tensors(x):
    if isinstance(x, torch.nn.Module):
        return list(x.parameters())
    if is_dataclass(x):
        return [y for y in vars(x).values() if isinstance(y, torch.Tensor)]
    return [y for y in tree_leaves(x) if isinstance(y, torch.Tensor)]


def _kernel(definition):
    def run(*args, **kwargs):
        given = [t for x in (*args, *kwargs.values()) for t in _tensors(x)]
        places = {t.device for t in given}
        assert len(places) == 1, f"{definition}: {places}"
        (place,) = places
        with bare():
            out = definition(*map(_host, args), **{k: _host(v) for k, v in kwargs.items()})
            return tree_map_only(torch.Tensor, lambda x: OnGpu(x, place), out)

    return run


def _norm_rotate(x_BLD, rms, table_LC, num_heads):
    if rms is not None:
        weight = _host(rms.weight)
        x_BLD = torch.nn.functional.rms_norm(x_BLD, weight.shape, weight, rms.eps)
    return rotate(x_BLD.unflatten(-1, (num_heads, -1)), table_LC)


@contextlib.contextmanager
def pretended(monkeypatch):
    gpus = Gpus.now = Gpus()
    cuda, tensor = torch.cuda, torch.tensor
    for name, value in {
        "get_device_capability": lambda device=None: (9, 0),
        "current_device": lambda: 0,
        "device_count": lambda: 2,
        "empty_cache": lambda: None,
        "get_device_name": lambda device=None: "a GPU",
    }.items():
        monkeypatch.setattr(cuda, name, value)
    for module, name, definition in (
        (norm_triton, "norm_modulate_triton", norm.norm_modulate_reference),
        (norm_triton, "gated_residual_triton", norm.gated_residual_reference),
        (norm_triton, "rms_norm_rotate_triton", _norm_rotate),
        (attention_triton, "attend_lists_triton", attention.attend_reference),
        (pooled_triton, "means_triton", lambda x, starts: pooled.means_reference(x, starts, None)),
        (pooled_triton, "keep_triton", pooled.keep_reference),
    ):
        monkeypatch.setattr(module, name, _kernel(definition))
    dense = _kernel(attention.attend_reference)
    monkeypatch.setattr(attention, "attend_dense_cuda", lambda name, q, k, v: dense(q, k, v))

    def make(data, device=None, **more):  # without one it is the context's, which may be "meta"
        made = tensor(data, **more)
        return made if device is None else made.to(device)

    monkeypatch.setattr(torch, "tensor", make)
    # inference tensors have no versions, and those of a subclass need them
    monkeypatch.setattr(torch.inference_mode, "__enter__", torch.no_grad.__enter__)
    monkeypatch.setattr(torch.inference_mode, "__exit__", torch.no_grad.__exit__)
    with FakeTensorMode(), gpus:  # the former, so that torch does not look for CUDA
        yield gpus
