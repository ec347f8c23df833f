"""The package as users install it, and an environment that has everything but the package."""

import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("configs", "kernels", "models", "parallel", "pipeline", "jobs")


def build_wheel(tree: Path) -> Path:
    """From a copy in this empty folder, so that the checkout stays clean."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("longreel", *FOLDERS):
        shutil.copytree(
            ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    command = [sys.executable, "-P", "-c", build]
    subprocess.run(command, cwd=tree, check=True, capture_output=True, timeout=120)
    (built,) = (tree / "dist").glob("*.whl")
    return built


def environment_without_us(folder: Path) -> Path:
    """Its bin folder, with `python` and `ray`: links to everything installed here, but longreel."""
    venv.create(folder, with_pip=False)
    (there,) = folder.glob("lib/python*/site-packages")
    for entry in Path(site.getsitepackages()[0]).iterdir():
        if "longreel" not in entry.name and not (there / entry.name).exists():
            (there / entry.name).symlink_to(entry)
    ray = (Path(sys.executable).parent / "ray").read_text().splitlines()
    (folder / "bin" / "ray").write_text("\n".join([f"#!{folder}/bin/python", *ray[1:]]))
    (folder / "bin" / "ray").chmod(0o755)
    return folder / "bin"
