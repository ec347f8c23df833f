"""Pictures that a video starts or ends with: opened, and fitted to its frames."""

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

_TURNS = {  # by the tag of a camera
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(path: Path, field: str = "image") -> Image.Image:
    """RGB, upright. ValueError names `field` when the file is no picture that can be used."""
    if not os.path.isfile(path):  # Path.is_file raises for names that are too long
        what = "is not a file" if os.path.exists(path) else "does not exist"
        raise ValueError(
            f"{field}={path} {what}, so there is no picture to start from; give the path of a PNG, "
            f"JPEG or WebP file"
        )
    try:
        with warnings.catch_warnings():
            # from 89 million pixels on PIL warns, from twice that it raises: one limit is enough
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # tags that are damaged: they are not read
            with Image.open(path) as opened:
                opened.load()
                upright = _upright(opened)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{field}={path} has more than {Image.MAX_IMAGE_PIXELS} pixels, which would fill the "
            f"memory for nothing; scale it down to about the size of the video first"
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{field}={path} is not an image in a format we read; convert it to PNG or JPEG"
        ) from error
    except Exception as error:  # PIL's decoders raise whatever a damaged file leads them to
        raise ValueError(
            f"{field}={path} cannot be read ({error}): it is damaged or may not be opened; check "
            f"its permissions, or save it again as PNG"
        ) from error
    return _to_rgb(upright, path, field)


def _upright(image: Image.Image) -> Image.Image:
    """As ImageOps.exif_transpose, which also writes all tags anew, and fails over any bad one."""
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image.copy() if turn is None else image.transpose(turn)


def fit_image(image: Image.Image, height: int, width: int) -> Tensor:
    """(1, 3, height, width) in [-1, 1].

    A picture of the video's aspect ratio comes out as diffusers' VideoProcessor makes it. Where the
    ratio differs diffusers stretches; we cut the longer side evenly at both ends first, so that
    nothing in the picture changes its shape.
    """
    kept_width = min(image.width, max(1, round(image.height * width / height)))
    kept_height = min(image.height, max(1, round(image.width * height / width)))
    left = (image.width - kept_width) // 2
    top = (image.height - kept_height) // 2
    if (kept_width, kept_height) != image.size:
        image = image.crop((left, top, left + kept_width, top + kept_height))
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    pixels_HWC = torch.from_numpy(np.array(image)).float() / 255
    return rearrange(2 * pixels_HWC - 1, "h w c -> 1 c h w").contiguous()


def _to_rgb(image: Image.Image, path: Path, field: str) -> Image.Image:
    if image.mode.startswith("I;16"):  # PIL would clip everything above 255 to white
        grey_HW = (np.asarray(image).astype(np.uint32) + 128) // 257
        image = Image.fromarray(grey_HW.astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"{field}={path} has {image.mode} pixels, whose black and white points are unknown; "
            f"save it as PNG with 8 or 16 bits per channel"
        )
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB PIL warns
    return image.convert("RGB")
