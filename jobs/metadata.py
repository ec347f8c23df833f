"""What a finished file says that it was made from."""

import os

from .. import __version__
from ..configs.load import to_yaml
from ..pipeline.request import Request


def metadata(request: Request) -> dict[str, str]:
    image = request.image
    return {
        "prompt": request.prompt,
        "prompt_at": "\n".join(
            f"{second:.15g} {' '.join(text.split())}" for second, text in request.prompt_at
        ),
        "seed": str(request.seed),
        "revision": str(request.section.revision if request.section else 0),  # edits of it
        # a file's name may be any bytes; metadata is UTF-8
        "image": os.fsencode(image.name).decode(errors="replace") if image else "",
        "config": to_yaml(request.config),
        "longreel": __version__,
    }
