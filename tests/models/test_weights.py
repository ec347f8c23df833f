"""Reading tensors: what is copied where, what is refused, and how much memory it takes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from longreel.models.weights import View, Weights, load_module

WIDTH = 6


class Slice(nn.Module):
    """A stand-in for a DiT: some of its layers, and the head where it is the last slice."""

    def __init__(self, layers: range, width: int = WIDTH, head: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({str(i): nn.Linear(width, width) for i in layers})
        self.register_buffer("steps", torch.zeros(2, dtype=torch.int64))
        if head:
            self.head = nn.Linear(width, 2)


def whole(num_layers: int = 4) -> dict[str, Tensor]:
    state = {f"blocks.{i}.weight": torch.randn(WIDTH, WIDTH) for i in range(num_layers)}
    state |= {f"blocks.{i}.bias": torch.randn(WIDTH) for i in range(num_layers)}
    head = {"head.weight": torch.randn(2, WIDTH), "head.bias": torch.randn(2)}
    return state | head | {"steps": torch.tensor([3, 9])}


def write(path: Path, state: dict[str, Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def safetensors(**header: dict[str, Any]) -> bytes:
    """A file's beginning."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def build(layers: range, head: bool = False) -> Slice:
    with torch.device("meta"):
        return Slice(layers, head=head)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_a_slice_gets_its_own_tensors_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    state = whole()
    weights = Weights(write(tmp_path / f"model{suffix}", state))
    part = build(range(1, 3))
    load_module(part, weights, device="cpu", dtype=torch.float32)

    loaded = part.state_dict()
    assert set(loaded) == {
        "steps",
        *(f"blocks.{i}.{leaf}" for i in (1, 2) for leaf in ("weight", "bias")),
    }
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


def test_dtype_is_the_asked_one_except_for_names_kept_in_float32(tmp_path: Path) -> None:
    state = whole()
    weights = Weights(write(tmp_path / "model.safetensors", state))
    model = build(range(4), head=True)
    load_module(
        model,
        weights,
        device="cpu",
        dtype=torch.bfloat16,
        keep_float32=lambda name: name.startswith("head"),
    )
    assert torch.equal(model.blocks["3"].weight, state["blocks.3.weight"].bfloat16())
    assert torch.equal(model.head.weight, state["head.weight"])
    assert torch.equal(model.steps, state["steps"])  # counters are not rounded to any float


def test_tied_parameters_stay_one_tensor(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = nn.ModuleDict({"first": nn.Linear(3, 3, bias=False), "again": nn.Linear(3, 3)})
        model["again"].weight = model["first"].weight
    state = {"first.weight": torch.randn(3, 3), "again.bias": torch.randn(3)}
    load_module(model, Weights(write(tmp_path / "m.pth", state)), device="cpu", dtype=torch.float32)
    assert model["again"].weight is model["first"].weight
    assert torch.equal(model["again"].weight, state["first.weight"])


def test_a_big_tensor_and_a_transposed_one_are_copied_exactly(tmp_path: Path) -> None:
    tall = torch.randn(3_000_001)  # 12 MB: twelve chunks, the last one odd
    turned = torch.randn(700, 300).T
    weights = Weights(write(tmp_path / "m.pth", {"tall": tall, "turned": turned}))
    for name, tensor in (("tall", tall), ("turned", turned)):
        into = torch.empty(tensor.shape, dtype=torch.float64)
        weights.copy(name, into)
        assert torch.equal(into, tensor.double())
        assert torch.equal(weights.read(name), tensor)  # its pages come back after their release


def test_a_file_larger_than_the_memory_gives_the_tensors_of_a_slice(tmp_path: Path) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    large = 2 * memory + 2**40  # a hole, which takes no room on the disk
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write(
            safetensors(
                small={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                large={"dtype": "BF16", "shape": [large // 2], "data_offsets": [8, 8 + large]},
                none={"dtype": "I64", "shape": [0, 3], "data_offsets": [8 + large, 8 + large]},
            )
        )
        start = file.tell()
        file.write(torch.tensor([3.0, 9.0]).numpy().tobytes())
        file.truncate(start + 8 + large)
    weights = Weights(path)
    assert weights.read("small").tolist() == [3.0, 9.0]
    assert weights.read("large")[-3:].tolist() == [0.0, 0.0, 0.0]
    assert weights.read("none").shape == (0, 3)


def test_a_torch_file_that_cannot_be_mapped_is_not_called_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "m.pth", whole())

    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError(
            f"unable to mmap 9 bytes from file <{path}>: Cannot allocate memory (12)"
        )

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(ValueError, match=r"m\.pth of .* cannot be mapped.*use it as safetensors"):
        Weights(path)


@pytest.mark.parametrize("key", ["generator", "state_dict", "model"])
def test_wrapped_state_dicts_are_found_and_the_ema_wins(tmp_path: Path, key: str) -> None:
    plain, ema = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    path = tmp_path / "model.pt"
    torch.save({key: plain, "step": torch.tensor(7)}, path)
    assert torch.equal(Weights(path).read("w"), plain["w"])
    torch.save({key: plain, "generator_ema": ema}, path)
    assert torch.equal(Weights(path).read("w"), ema["w"])


def test_views_split_rows_and_drop_leading_axes(tmp_path: Path) -> None:
    qkv, table = torch.randn(6, 4), torch.randn(1, 5, 4)
    path = write(tmp_path / "m.safetensors", {"qkv": qkv, "table": table, "text": torch.zeros(1)})
    views = {
        "qkv": [View(name=name, part=i, parts=3) for i, name in enumerate("qkv")],
        "table": [View(name="positions", drop=1)],
        "text": [],
    }
    weights = Weights(path, views.__getitem__)
    assert weights.shapes == {"q": (2, 4), "k": (2, 4), "v": (2, 4), "positions": (5, 4)}
    for name, expected in zip("qkv", qkv.chunk(3), strict=True):
        assert torch.equal(weights.read(name), expected)
    assert torch.equal(weights.read("positions"), table[0])


def test_shards_are_joined_by_their_index_or_by_their_numbers(tmp_path: Path) -> None:
    state = whole()
    halves = [{n: state[n] for n in sorted(state)[i::2]} for i in range(2)]
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name, half in zip(names, halves, strict=True):
        save_file(half, tmp_path / name)
    numbered = Weights(tmp_path)
    index = {n: name for name, half in zip(names, halves, strict=True) for n in half}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for weights in (numbered, Weights(tmp_path)):
        assert weights.shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
        assert all(torch.equal(weights.read(name), state[name]) for name in state)

    (tmp_path / names[1]).unlink()
    with pytest.raises(
        ValueError, match=r"lacks 1 of the 2 files .*index\.json.*-00002-of.*run it"
    ):
        Weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of the 2 files .*-00002-of-00002.*run it again"):
        Weights(tmp_path)


def test_a_folder_that_does_not_say_which_file_is_meant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no weights .*set model\.checkpoint"):
        Weights(tmp_path)
    for name in ("a.pt", "b.pt"):
        write(tmp_path / name, whole())
    with pytest.raises(ValueError, match=r"2 files of weights \(a\.pt, b\.pt\).*model\.transf"):
        Weights(tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path: Path, suffix: str) -> None:
    state = whole()
    del state["blocks.2.bias"]
    state["blocks.1.gate"] = torch.zeros(1)
    state["head.weight"] = torch.zeros(3, WIDTH)
    path = write(tmp_path / f"model{suffix}", state)
    with pytest.raises(ValueError, match="does not fit") as caught:
        load_module(build(range(4), True), Weights(path), device="cpu", dtype=torch.float32)
    message = str(caught.value)
    assert str(path) in message
    assert "1 missing (blocks.2.bias)" in message
    assert "1 unknown (blocks.1.gate)" in message
    assert "1 of another shape (head.weight is (3, 6) in the file and (2, 6) in the" in message
    assert "set model.arch" in message


def test_only_a_slice_may_leave_layers_and_parts_to_others(tmp_path: Path) -> None:
    weights = Weights(write(tmp_path / "m.pth", whole()))
    load_module(build(range(2)), weights, device="cpu", dtype=torch.float32)
    with pytest.raises(ValueError, match=r"2 unknown \(head\.weight, head\.bias\)"):
        load_module(build(range(4)), weights, device="cpu", dtype=torch.float32)
    load_module(
        build(range(4)),
        weights,
        device="cpu",
        dtype=torch.float32,
        only=lambda name: not name.startswith("head."),
    )
    with pytest.raises(ValueError, match=r"2 missing \(blocks\.4\.weight, blocks\.4\.bias\)"):
        load_module(build(range(3, 5)), weights, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_cut_anywhere_is_called_truncated_when_it_is_opened(
    tmp_path: Path, suffix: str
) -> None:
    path = write(tmp_path / f"model{suffix}", whole())
    content = path.read_bytes()
    for size in (0, 5, 300, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        cut = r"truncated: expected .*found|not a zip archive .*before PyTorch 1\.6"
        with pytest.raises(ValueError, match=cut) as caught:
            Weights(path)
        assert "download it again" in str(caught.value)
    if suffix == ".safetensors":
        assert f"expected {len(content)} bytes, found {len(content) - 1} bytes" in str(caught.value)


def test_what_is_no_file_of_tensors_is_refused_with_the_way_out(tmp_path: Path) -> None:
    def refused(name: str, content: bytes, expected: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=expected):
            Weights(tmp_path / name)

    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5676070424\n"
    refused("lfs.safetensors", pointer, r"pointer of 72 bytes instead of 5676070424.*git lfs pull")
    refused("page.safetensors", b"<!DOCTYPE html>" * 9, r"not a safetensors file.*download it")
    refused("junk.safetensors", (20).to_bytes(8, "little") + b"x" * 20, r"corrupt: unreadable")
    for entry, said in (
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "does not add up"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}, "does not add up"),
        ({"dtype": "F3", "shape": [2], "data_offsets": [0, 8]}, "F3"),
        ({"dtype": "F32", "shape": [2]}, "data_offsets"),
    ):
        refused("odd.safetensors", safetensors(w=entry), rf"corrupt: unreadable.*{said}.*download")
    intact = safetensors(w={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]})
    refused("long.safetensors", intact + bytes(9), r"corrupt: 1 bytes too long; download it again")
    refused("page.pth", b"<!DOCTYPE html>" * 9, r"not a zip archive.*download it again")
    refused("note.txt", b"hello", r"not a file of weights: its name ends in none of \.safeten")
    with pytest.raises(ValueError, match=r"absent\.pth: no such file; set model\.checkpoint"):
        Weights(tmp_path / "absent.pth")

    torch.save({"weights": {"w": torch.ones(1)}}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"no tensors under a name we know \(has: weights;"):
        Weights(tmp_path / "odd.pth")
    torch.save({"model": {"w": torch.ones(1)}, "hook": Path}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="could run code when loaded; save its state_dict"):
        Weights(tmp_path / "code.pth")


MEASURE = """
import os, re, sys
from pathlib import Path
import torch
from torch import nn
from longreel.models.weights import Weights, load_module

def status(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def load(path, width, layers, dtype):
    with torch.device("meta"):
        model = nn.Module()
        model.blocks = nn.ModuleDict({i: nn.Linear(width, 4 * width) for i in layers})
    load_module(model, Weights(path), device="cpu", dtype=getattr(torch, dtype))
    return sum(tensor.nbytes for tensor in model.state_dict().values())

def measure(tiny, path, dtype, layers):
    load(tiny, 8, "0", dtype)  # a first load brings in a few MB of code
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # restarts the peak at what is resident now
    slice_bytes = load(path, 1024, layers, dtype)
    print(dtype, path.suffix, status("VmHWM") - before, slice_bytes, flush=True)

for suffix in (".safetensors", ".pth"):
    for dtype, layers in (("float32", "23"), ("bfloat16", "2345")):
        child = os.fork()  # each loads into memory of its own
        if not child:
            measure(*(Path(sys.argv[1]) / f"{n}{suffix}" for n in ("tiny", "model")), dtype, layers)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[int, int, int]]:
    """By type and kind of file: by how much a process grows, bytes of the slice, of the file."""
    # 8 layers of 16 MB in float32; the slice is 33.6 MB in either type
    state = {f"blocks.{i}.weight": torch.zeros(4096, 1024) for i in range(8)}
    state |= {f"blocks.{i}.bias": torch.zeros(4096) for i in range(8)}
    tiny = {"blocks.0.weight": torch.zeros(32, 8), "blocks.0.bias": torch.zeros(32)}
    folder = tmp_path_factory.mktemp("weights")
    for suffix in (".safetensors", ".pth"):
        write(folder / f"model{suffix}", state)
        write(folder / f"tiny{suffix}", tiny)
    done = subprocess.run(
        [sys.executable, "-P", "-c", MEASURE, folder],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    return {
        (dtype, suffix): (int(grown), int(size), (folder / f"model{suffix}").stat().st_size)
        for dtype, suffix, grown, size in lines
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_a_slice_takes_less_than_1_2_times_its_bytes(
    loaded: dict[tuple[str, str], tuple[int, int, int]], suffix: str, dtype: str
) -> None:
    grown, slice_bytes, file_bytes = loaded[dtype, suffix]
    assert slice_bytes == 2 * (4096 * 1024 + 4096) * 4
    assert file_bytes > 3.9 * slice_bytes
    assert 0.9 * slice_bytes < grown < 1.2 * slice_bytes
