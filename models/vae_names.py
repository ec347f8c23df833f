"""Tensor names of the original Wan VAE files, Wan2.1_VAE and Wan2.2_VAE, as diffusers spells them.

The originals number the layers of a level through, upsampling included; 2.1 numbers through all
levels at once, 2.2 keeps levels apart.
"""

import re

from .arch import VaeArch

_PARTS = {
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
    "encoder.conv1": "encoder.conv_in",
    "decoder.conv1": "decoder.conv_in",
    "encoder.head.0": "encoder.norm_out",
    "decoder.head.0": "decoder.norm_out",
    "encoder.head.2": "encoder.conv_out",
    "decoder.head.2": "decoder.conv_out",
}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_LAYERS = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
_LEVEL = re.compile(r"(encoder\.down|decoder\.up)samples\.(\d+)\.(?:(?:down|up)samples\.(\d+)\.)?")


def diffusers_name(name: str, arch: VaeArch) -> str:
    """The name diffusers gives the tensor that an original file calls `name`."""
    stem, _, leaf = name.rpartition(".")
    if stem in _PARTS:
        return f"{_PARTS[stem]}.{leaf}"
    if match := re.match(r"(encoder|decoder)\.middle\.([012])\.", stem):
        prefix = f"{match[1]}.mid_block.{_MIDDLE[match[2]]}"
    elif match := _LEVEL.match(stem):
        prefix = _level_name(match, arch)
    else:
        return name  # unknown: whoever reads the file names it as one too many
    layer = stem[match.end() :]
    return f"{prefix}.{_LAYERS.get(layer, layer)}.{leaf}"


def _level_name(match: re.Match[str], arch: VaeArch) -> str:
    side, level, layer = match[1], int(match[2]), match[3]
    if side == "encoder.down":
        if layer is None:
            return f"encoder.down_blocks.{level}"
        kind = f"resnets.{layer}" if int(layer) < arch.num_res_blocks else "downsampler"
        return f"encoder.down_blocks.{level}.{kind}"
    num_resnets = arch.num_res_blocks + 1  # the decoder has one more than the encoder
    if layer is None:
        level, index = divmod(level, num_resnets + 1)
        kind = f"resnets.{index}" if index < num_resnets else "upsamplers.0"
    else:
        kind = f"resnets.{layer}" if int(layer) < num_resnets else "upsampler"
    return f"decoder.up_blocks.{level}.{kind}"
