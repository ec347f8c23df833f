"""What a user installs: every file of the package, few dependencies, nothing heavy to begin."""

import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from built_wheel import FOLDERS, ROOT, build_wheel
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEAVY = ("diffusers", "ray", "torch", "transformers", "triton")
MAX_PACKAGES = 65
CUDA_RUNTIME = ("cuda-", "nvidia-", "triton")  # comes with a CUDA build of torch, by its choice


def run_python(code: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def package_files() -> dict[str, bytes]:
    """Name in a wheel and content of every file that belongs to the package."""
    files = {
        f"longreel/{path.name}": path.read_bytes()
        for path in (ROOT / "longreel").iterdir()
        if path.is_file() and not path.is_symlink()
    }
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                files[f"longreel/{path.relative_to(ROOT)}"] = path.read_bytes()
    return files


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("tree"))


def test_a_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name: archive.read(name) for name in archive.namelist()}
    packed = {name: content for name, content in packed.items() if ".dist-info/" not in name}
    expected = package_files()
    assert packed.keys() == expected.keys()
    assert packed == expected
    assert {Path(name).suffix for name in packed} == {
        ".py",
        ".yaml",
        ".typed",
        ".json",
        ".safetensors",
        ".html",
        ".js",
        ".css",
    }


def test_a_wheel_works_without_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import longreel\n"
        "from longreel.configs.load import load_config, preset_names\n"
        "print(longreel.__file__)\n"
        "print(len([load_config(name) for name in preset_names()]))\n"
    )
    where, presets = run_python(code, tmp_path, PYTHONPATH=str(tmp_path)).split()
    assert Path(where) == tmp_path / "longreel" / "__init__.py"
    assert int(presets) == len(list((ROOT / "configs").glob("*.yaml")))


IMPORT = "import longreel"
HELP = """
import sys
from longreel.jobs.cli import main
sys.argv = ["longreel", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code
"""


@pytest.mark.parametrize("code", [IMPORT, HELP], ids=["import", "help"])
def test_nothing_heavy_is_imported_at_the_start(code, tmp_path):
    report = "\nimport json, sys\nprint()\nprint(json.dumps(sorted(sys.modules)))"
    modules = json.loads(run_python(code + report, tmp_path).splitlines()[-1])
    assert "longreel" in modules
    assert [name for name in modules if name.split(".")[0] in HEAVY] == []


def test_the_command_is_the_one_the_package_declares():
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="longreel")
    assert entry.value == "longreel.jobs.cli:main"


def needed(requirement: Requirement, found: set[tuple[str, str]]) -> None:
    """Add every (package, extra) that an installation of the requirement brings."""
    name = canonicalize_name(requirement.name)
    for extra in ("", *requirement.extras):
        if (name, extra) in found:
            continue
        found.add((name, extra))
        for line in importlib.metadata.requires(name) or []:
            inner = Requirement(line)
            if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                needed(inner, found)


def test_the_base_installation_stays_small():
    found: set[tuple[str, str]] = set()
    needed(Requirement("longreel"), found)
    packages = {name for name, _ in found if not name.startswith(CUDA_RUNTIME)} - {"longreel"}
    assert {"torch", "ray", "diffusers", "transformers", "av", "omegaconf"} <= packages
    assert {"numpy", "pyyaml"} <= packages  # of our dependencies' own
    assert len(packages) <= MAX_PACKAGES, sorted(packages)
