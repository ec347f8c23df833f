"""The pictures that a request starts from or ends on: whether its model takes them, opened."""

from PIL import Image

from ..configs.files import expand
from ..models.arch import ModelArch
from ..models.image import open_image
from .request import Request


def check_pictures(request: Request, arch: ModelArch) -> None:
    """ValueError where the model takes others than are given."""
    name, last = request.config.model.arch, request.config.video.last_image
    if arch.image == "none":
        if request.image is not None or last:
            field, value = ("image", request.image) if request.image else ("video.last_image", last)
            raise ValueError(
                f"{field}={value} would be ignored: model.arch={name} takes a prompt alone here; "
                "leave it out, or choose an image-to-video preset (see `longreel presets`)"
            )
    elif arch.image == "channels" and request.image is None:
        raise ValueError(
            f"image is missing, and model.arch={name} starts from one; give --image FILE"
        )
    if last and not _may_end_on_one(arch):
        raise ValueError(
            f"video.last_image={last} is not for model.arch={name}, which was taught with a first "
            "image only; leave it out, or use the presets wan2.1-flf2v-14b or wan2.2-i2v-a14b"
        )
    if arch.dit.image_positions and not last:
        raise ValueError(
            f"video.last_image is missing, and model.arch={name} ends on one; "
            "give video.last_image=FILE"
        )
    if request.config.video.frames == 0 and arch.image == "channels":
        raise ValueError(
            f"video.frames=0 has no end, and model.arch={name} reads a picture for every latent to "
            "come; give a number of frames"
        )
    if request.config.video.frames == 1 and last:
        raise ValueError(
            f"video.frames=1 leaves no frame for video.last_image={last}; use at least 5"
        )


def _may_end_on_one(arch: ModelArch) -> bool:
    """Where channels say which frames are given, any may be; CLIP's tokens are of one picture, or
    of two where they have positions."""
    return arch.image == "channels" and (not arch.dit.image_dim or bool(arch.dit.image_positions))


def open_pictures(request: Request) -> tuple[Image.Image, ...]:
    """The first frame's, then the last frame's."""
    last = request.config.video.last_image
    paths = {"image": request.image, "video.last_image": expand(last) if last else None}
    return tuple(open_image(path, field) for field, path in paths.items() if path is not None)
