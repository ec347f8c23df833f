"""Where tests keep what encoders make of prompts: they read few, again and again, and an encoder
takes as long as some of their renders do."""

import os
from pathlib import Path

TEXTS = Path(os.environ["XDG_DATA_HOME"]) / "texts"
