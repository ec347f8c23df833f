"""Compiles our Triton kernels for Hopper without a GPU; run with Triton's interpreter off.

python tests/support/hopper.py  # a line of JSON per kernel: what the machine code holds
"""

import json
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from longreel.kernels import attention_triton, norm_triton, pooled_triton
from longreel.kernels.attention_layout import launch_options

HOPPER = GPUTarget("cuda", 90, 32)
STRIDES = {f"{x}_{axis}" for x in ("q", "k", "v", "out", "previous") for axis in "blsh"}


def compile_kernel(kernel, pointers: dict, constants: dict, options: dict) -> dict:
    """`pointers`: what each points at, where that is not int32."""
    signature, aligned = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            points_at = pointers.get(name, "i32")
            signature[name] = points_at if points_at.startswith("tensordesc") else "*" + points_at
        else:
            signature[name] = "fp32" if name in ("scale", "eps", "limit") else "i32"
        if name in STRIDES | {"row", "x_l", "y_l", "channels"} or signature[name].startswith("*"):
            aligned[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    built = triton.compile(source, target=HOPPER, options=options | {"enable_fp_fusion": True})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        usage = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    words = dict(word.split(":") for word in usage.split() if word.count(":") == 1)
    return {
        "tensor cores": built.asm["ptx"].count("wgmma.mma_async"),
        "async copies": built.asm["ptx"].count("cp.async"),
        "shared": built.metadata.shared,
        "spilled": int(words["STACK"]),
    }


def attention(
    tile: int, channels: int, *, previous=False, even=True, descriptors=True, kind="bf16"
) -> dict:
    options = launch_options(
        tile,
        tile,
        channels,
        item=4 if kind == "fp32" else 2,
        descriptors=descriptors,
        even=even,
    )
    constants = {
        "CHANNELS": channels,
        "HAS_ORDER": True,
        "HAS_PREVIOUS": previous,
        "TILE": tile if even else 0,
        "SPLIT": -(-tile // options["BLOCK_N"]),
        "WIDEN": False,
        "PRECISION": "ieee" if kind == "fp32" else "tf32",
        **{name: value for name, value in options.items() if name.isupper()},
    }
    pointers = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), kind)
    pointers |= dict.fromkeys(("out_ptr", "previous_ptr"), "fp32" if previous else kind)
    if options["DESCRIPTORS"]:
        box = f"tensordesc<{kind}[{options['BLOCK_N']},{options['BLOCK_D']}]>"
        pointers |= {"k_ptr": box, "v_ptr": box}
    pointers |= {"lse_ptr": "fp32", "previous_lse_ptr": "fp32", "order_ptr": "i64"}
    return compile_kernel(
        attention_triton._attend_kernel,
        pointers,
        constants,
        {name: options[name] for name in ("num_warps", "num_stages")},
    )


def fused(kernel, **constants: int) -> dict:
    """Of the width of Wan 14B."""
    pointers = dict.fromkeys(("x_ptr", "y_ptr", "out_ptr", "weight_ptr"), "bf16")
    pointers |= dict.fromkeys(("scale_ptr", "shift_ptr", "gate_ptr", "table_ptr"), "fp32")
    pointers["index_ptr"] = "i64"
    constants = {"ROWS": norm_triton._ROWS, **constants}
    return compile_kernel(kernel, pointers, constants, {"num_warps": 8})


def pooled() -> tuple[dict, dict]:
    """Of heads of 128 channels, and up to 1,024 tiles."""
    means = compile_kernel(
        pooled_triton._means_kernel,
        {"x_ptr": "bf16", "y_ptr": "fp32"},
        {"BLOCK_L": pooled_triton._TOKENS, "BLOCK_D": 128},
        {"num_warps": 4},
    )
    keep = compile_kernel(
        pooled_triton._keep_kernel,
        {"scores_ptr": "fp32"},
        {"BY_MASS": True, "BLOCK": 1024},
        {"num_warps": 4},
    )
    return means, keep


if __name__ == "__main__":
    levels = {"HAS_INDEX": True, "BLOCK": 8192}
    heads = {"HEAD": 128, "BLOCK_H": 64, "BLOCK_D": 128, "NORM": True}
    print(json.dumps(fused(norm_triton._modulate_kernel, **levels)))
    print(json.dumps(fused(norm_triton._residual_kernel, **levels)))
    print(json.dumps(fused(norm_triton._rotate_kernel, **heads)))
    for kernel in pooled():
        print(json.dumps(kernel))
    for tile in (120, 128):
        for channels in (64, 128):
            print(json.dumps(attention(tile, channels)))
    print(json.dumps(attention(128, 128, previous=True)))
    print(json.dumps(attention(128, 128, even=False)))
    print(json.dumps(attention(128, 128, descriptors=False)))
    # of fewer channels, as sums without tensor cores are compiled one product at a time
    print(json.dumps(attention(128, 32, descriptors=False, kind="fp32")))
