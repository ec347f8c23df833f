"""The folders keep to their place: who imports whom, and where the heavy libraries may appear."""

import ast
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "configs": {"configs"},
    "kernels": {"kernels"},
    "models": {"configs", "kernels", "models"},
    "parallel": {"configs", "kernels", "models", "parallel"},
    "pipeline": {"configs", "kernels", "models", "parallel", "pipeline"},
    "jobs": {"configs", "kernels", "models", "parallel", "pipeline", "jobs"},
}
# packages inside a folder, under its rules
WITHIN = {
    "jobs/client",
    "jobs/serve",
    "jobs/submit",
    "jobs/evaluate",
    "jobs/home",
    "jobs/train",
    "jobs/world",
}
HOMES = {
    "triton": {"kernels"},
    "torch.distributed": {"parallel"},
    "ray": {"parallel", "jobs"},
}
READS_ENVIRONMENT = {"environ", "environb", "getenv", "getenvb"}
MAX_LINES = 350


def package_files() -> list[Path]:
    folders = [ROOT / folder for folder in MAY_IMPORT]
    return sorted(
        path for folder in [ROOT / "longreel", *folders] for path in folder.glob("**/*.py")
    )


def place_of(path: Path) -> str:
    return str(path.relative_to(ROOT).parent)


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Full dotted names of what a file of `package` imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # from ..a import b in longreel.jobs is longreel.a.b
            parts = package.split(".")
            base = parts[: len(parts) - node.level + 1] if node.level else []
            if node.level > len(parts):
                yield "beyond the package"
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):  # torch.distributed, once torch is imported
            yield dotted(node)
        elif isinstance(node, ast.Call) and dotted(node.func).endswith("import_module"):
            yield from (str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def dotted(node: ast.AST) -> str:
    """a.b.c as it is written; .b.c of what is no name, such as a call."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def is_or_is_in(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def faults(source: str, place: str) -> list[str]:
    """What a file with this source, in this folder or package, does against the rules."""
    tree = ast.parse(source)
    found = []
    folder = place.split("/")[0]
    package = f"longreel.{place.replace('/', '.')}" if folder in MAY_IMPORT else "longreel"
    absolute = {
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
    }
    for name in absolute:
        if name.split(".")[0] in {"longreel", *MAY_IMPORT}:
            found.append(f"imports {name} by an absolute name")
    for name in imported(tree, package):
        for other in MAY_IMPORT:
            if is_or_is_in(name, f"longreel.{other}") and other not in MAY_IMPORT.get(
                folder, set(MAY_IMPORT)
            ):
                found.append(f"imports {other}")
        for library, homes in HOMES.items():
            if is_or_is_in(name, library) and folder not in homes:
                found.append(f"uses {library}")
        if name == "beyond the package":
            found.append("imports from outside longreel")
        if folder not in ("jobs", "longreel") and name.split(".")[-1] in READS_ENVIRONMENT:
            found.append("reads the environment")
    return found


@pytest.mark.parametrize("path", package_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_keeps_to_its_place(path):
    assert faults(path.read_text(encoding="utf-8"), place_of(path)) == []


@pytest.mark.parametrize(
    ("folder", "source", "fault"),
    [
        ("configs", "from ..models.arch import ARCHS", "imports models"),
        ("configs", "from ..kernels import norm", "imports kernels"),
        ("kernels", "from .. import configs", "imports configs"),
        ("models", "def f():\n    from ..pipeline.noise import noise", "imports pipeline"),
        ("models", "import importlib\nimportlib.import_module('ray')", "uses ray"),
        ("parallel", "from ..jobs import cli as c", "imports jobs"),
        ("pipeline", "if x:\n    from ..jobs.cli import main", "imports jobs"),
        ("models", "import triton.language as tl", "uses triton"),
        ("pipeline", "from triton import jit", "uses triton"),
        ("models", "import torch.distributed as dist", "uses torch.distributed"),
        ("jobs", "from torch import distributed", "uses torch.distributed"),
        ("pipeline", "import torch\ntorch.distributed.barrier()", "uses torch.distributed"),
        ("pipeline", "from ray.util import queue", "uses ray"),
        ("longreel", "import ray", "uses ray"),
        ("jobs", "import longreel.configs", "imports longreel.configs by an absolute name"),
        ("jobs", "from longreel import render", "imports longreel by an absolute name"),
        ("jobs", "import kernels", "imports kernels by an absolute name"),
        ("jobs", "from models.arch import ARCHS", "imports models.arch by an absolute name"),
        ("jobs", "from ...outside import thing", "imports from outside longreel"),
        ("jobs/train", "from ....outside import thing", "imports from outside longreel"),
        ("jobs/train", "import torch.distributed", "uses torch.distributed"),
        ("jobs/train", "from longreel.jobs.train import x", "imports longreel.jobs.train by"),
        ("models", "import os\nos.environ['A']", "reads the environment"),
        ("kernels", "from os import getenv", "reads the environment"),
        ("configs", "import os as system\nsystem.getenv('A')", "reads the environment"),
    ],
)
def test_each_fault_is_seen(folder, source, fault):
    assert any(found.startswith(fault) for found in faults(source, folder))


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("kernels", "import triton\nimport triton.language as tl"),
        ("parallel", "import ray\nimport torch.distributed\nfrom ..models import arch"),
        ("jobs", "import os\nimport ray\nos.environ.get('A')\nfrom ..configs import load"),
        ("pipeline", "from .noise import noise\nfrom ..parallel import link\nimport arrays.ray"),
        ("longreel", "from .jobs.video import Video"),
        ("jobs/train", "from ...parallel.zero import ZeroEngine\nfrom ..world import draw"),
        ("models", "import torch\nfrom torch.utils import data"),
    ],
)
def test_what_is_allowed_is_no_fault(folder, source):
    assert faults(source, folder) == []


def test_every_folder_is_linked_into_the_package_and_shipped():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = set(project["tool"]["setuptools"]["packages"])
    places = [*MAY_IMPORT, *(place.replace("/", ".") for place in WITHIN)]
    assert shipped == {"longreel", *(f"longreel.{place}" for place in places)}
    for folder in MAY_IMPORT:
        assert (ROOT / folder / "__init__.py").is_file()
        assert os.readlink(ROOT / "longreel" / folder) == f"../{folder}"


def test_no_other_folder_calls_itself_a_package():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == {"longreel", *MAY_IMPORT}


def test_folders_are_flat_but_for_the_packages_that_are_named():
    assert {place_of(path) for path in package_files()} == {"longreel", *MAY_IMPORT, *WITHIN}


@pytest.mark.parametrize("path", package_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read_in_one_go(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
