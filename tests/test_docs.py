"""What a user reads is true: examples run, commands parse, tables agree with the code."""

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from few_references import few_references
from PIL import Image
from typer.testing import CliRunner

import longreel
from longreel.configs import attention, parallel, schema
from longreel.configs.fields import fields
from longreel.configs.load import load_config, preset_names
from longreel.configs.schema import Config
from longreel.configs.train_schema import TrainConfig
from longreel.jobs.cli import app
from longreel.jobs.render import plan_render
from longreel.models.arch import ARCHS
from longreel.models.vae_build import random_vae
from longreel.pipeline.plan import describe

ROOT = Path(__file__).resolve().parent.parent
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in DOCS}
FOLDERS = ("configs", "kernels", "models", "parallel", "pipeline", "jobs")
SUBFOLDERS = (
    "jobs/client",
    "jobs/evaluate",
    "jobs/home",
    "jobs/serve",
    "jobs/submit",
    "jobs/train",
    "jobs/world",
)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)


def pages_with(language: str) -> list[str]:
    return [page for page in PAGES if blocks(page, language)]


def rows(page: str, heading: str) -> list[list[str]]:
    """Cells of the table whose first column has this heading; code marks are taken off."""
    table = re.search(rf"^\| {heading} \|.*\n\|[-| ]+\n((?:\|.*\n)+)", PAGES[page], re.MULTILINE)
    assert table, heading
    lines = table[1].splitlines()
    return [[cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in lines]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty working directory and home, so that neither files nor prompts are found again."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture(scope="module")
def run_pages(tmp_path_factory, server):
    """A page's Python, run once: its names afterwards, its folder, what it printed."""
    done = {}

    def run(page):
        if page not in done:
            folder = tmp_path_factory.mktemp("page")
            names, printed = {"__name__": page}, io.StringIO()
            with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
                patch.setenv("HOME", str(folder))
                patch.chdir(folder)
                if "longreel.Client()" in PAGES[page]:
                    patch.setenv("LONGREEL_URL", server.url)
                for number, block in enumerate(blocks(page, "python"), start=1):
                    exec(compile(block, f"{page}, example {number}", "exec"), names)
            done[page] = names, folder, printed.getvalue()
        return done[page]

    return run


@pytest.mark.parametrize("page", pages_with("python"))
def test_the_python_examples_run(page, run_pages):
    _, folder, printed = run_pages(page)
    assert printed
    assert list(folder.glob("*.mp4"))
    assert not list(folder.glob(".*.part"))


def test_a_video_made_again_from_its_metadata_is_the_same_file(run_pages):
    _, folder, _ = run_pages("python.md")
    assert (folder / "again.mp4").read_bytes() == (folder / "circle.mp4").read_bytes()


def test_the_encoder_shown_keeps_every_frame(run_pages):
    import av

    names, folder, _ = run_pages("python.md")
    with av.open(str(folder / "lossless.mkv")) as file:
        kept = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    streamed = names["longreel"].stream("a red circle drifts to the right", frames=9)
    assert np.array_equal(kept, np.concatenate([chunk.frames for chunk in streamed]))


def test_the_decoding_shown_gives_the_frames_of_the_stream(run_pages, workplace):
    names, _, _ = run_pages("python.md")
    shown = names["decode"](names["latents"], random_vae(ARCHS["tiny"].vae, seed=0)).numpy()
    streamed = longreel.stream("a red circle drifts to the right", preset="tiny", frames=9)
    frames = np.concatenate([chunk.frames for chunk in streamed])
    assert np.abs(shown.astype(int) - frames.astype(int)).max() <= 1


def test_the_errors_shown_are_caught_and_said(run_pages):
    _, _, printed = run_pages("python.md")
    assert re.search(r"^\[0, 1, 5\]\nchange the request: prompt.* is empty", printed, re.MULTILINE)


def test_examples_and_results_are_typed(tmp_path):
    """mypy over every example, and over what the package promises its users."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "longreel").symlink_to(ROOT / "longreel")
    (tmp_path / "promised.py").write_text(
        "from typing import Unpack, assert_type\n"
        "import longreel\n"
        "from longreel.jobs.video import Video\n"
        "assert_type(longreel.render('a', 'b.mp4', frames=9), Video)\n"
        "assert_type(longreel.stream('a', overrides=['model.device=cpu']), longreel.FrameStream)\n"
        "assert_type(longreel.Client().render('a'), longreel.Render)\n"
        "assert_type(longreel.Client().render('a').wait(), longreel.RenderInfo)\n"
        "async def ask() -> longreel.AsyncRender:\n"
        "    return await longreel.AsyncClient().render('a')\n"
        "def passed_on(**request: Unpack[longreel.Request]) -> longreel.FrameStream:\n"
        "    return longreel.stream('a', **request)\n"
        "longreel.generate_latents('a', seed='7')  # type: ignore[arg-type]\n"
        "longreel.render('a', 'b.mp4', frame=9)  # type: ignore[call-arg]\n"
    )
    for page in pages_with("python"):
        stem = re.sub(r"\W", "_", page.lower())
        (tmp_path / f"{stem}.py").write_text("\n".join(blocks(page, "python")), encoding="utf-8")
    (tmp_path / "mypy.ini").write_text(  # other packages' types would take a minute to read
        "[mypy]\nstrict = True\nfollow_imports = skip\ndisallow_untyped_decorators = False\n"
        "[mypy-longreel.*]\nfollow_imports = silent\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mypy", *sorted(p.name for p in tmp_path.glob("*.py"))],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": "site"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_public_name_is_on_a_page():
    words = {*re.findall(r"\w+", " ".join(PAGES[page] for page in ("python.md", "client.md")))}
    assert {*longreel.__all__} <= words


def commands() -> list[tuple[str, list[str]]]:
    """(page, arguments) of every `longreel` command line that is shown."""
    found = []
    for page in pages_with("sh"):
        for line in "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line, comments=True) or [""]
            if Path(program).name == "longreel":
                found.append((page, arguments))
    return found


def test_every_page_with_commands_was_read():
    assert {page for page, _ in commands()} >= {"README.md", "configuration.md"}


@pytest.mark.parametrize(("page", "arguments"), commands(), ids=lambda value: str(value)[:70])
def test_a_command_line_works_as_it_is_shown(page, arguments, workplace, monkeypatch):
    few_references(monkeypatch)
    for block in blocks(page, "yaml"):
        if named := re.match(r"# (\S+\.yaml)\n", block):
            (workplace / named[1]).write_text(block, encoding="utf-8")
    unmade = arguments[0] == "train"  # trains for hours
    if arguments[0] == "render" and "--preset" in arguments:
        unmade = True  # needs weights
    if unmade and "--dry-run" not in arguments:
        arguments = [*arguments, "--dry-run"]
    elif arguments[0] == "render" and "--frames" not in arguments:
        arguments = [*arguments, "--frames", "9"]  # five seconds of video take a while
    before = signal.getsignal(signal.SIGTERM)
    try:
        result = CliRunner().invoke(app, arguments)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert result.exit_code == 0, result.output
    assert result.output.strip()


def shown_only() -> list[list[str]]:
    """Commands that need a server or a cluster: they are shown, and not run."""
    lines = "\n".join(block for page in PAGES for block in blocks(page, "console")).split("\n")
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("longreel ")]


@pytest.mark.parametrize("arguments", shown_only(), ids=lambda value: str(value)[:70])
def test_a_command_that_is_only_shown_has_these_options(arguments):
    command, *rest = arguments
    help_text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
    for option in rest:
        if option.startswith("-"):
            assert option in help_text, option
        elif re.fullmatch(r"\w+\.\w+=.*", option):
            assert option.partition("=")[0] in fields()


def test_every_make_target_shown_exists():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = {name for text in PAGES.values() for name in re.findall(r"^ +make (\w+)", text, re.M)}
    assert {"video", "test"} <= shown <= targets


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_points_at_a_file(page):
    folder = next(path.parent for path in DOCS if path.name == page)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", PAGES[page]):
        if "://" not in target:
            assert (folder / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_every_path_named_exists(page):
    folders = "|".join((*FOLDERS, "longreel", "tests", "benchmarks", "docs", r"\.ci"))
    for path in re.findall(rf"[`\s]((?:{folders})/[\w./*-]+)", PAGES[page]):
        assert list(ROOT.glob(path.rstrip("."))), path


@pytest.mark.parametrize("folder", [*FOLDERS, *SUBFOLDERS])
def test_architecture_names_every_file_of_a_folder(folder):
    page = PAGES["architecture.md"]
    section = re.search(rf"^### {folder}/.*?\n(.*?)(?=^##)", page, re.MULTILINE | re.DOTALL)
    assert section, folder
    named = re.findall(r"`(\w+\.py)`", section[1])
    there = [path.name for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"]
    assert sorted(named) == sorted(there)


@pytest.mark.parametrize(
    ("page", "schema"), [("configuration.md", Config), ("training.md", TrainConfig)]
)
def test_every_field_is_documented_with_its_default(page, schema):
    documented = {key: yaml.safe_load(default) for key, default, _ in rows(page, "field")}
    config = schema()
    expected = {}
    for key in fields(schema):
        group, _, name = key.rpartition(".")
        value = getattr(getattr(config, group) if group else config, name)
        expected[key] = list(value) if isinstance(value, tuple) else value
    assert documented == expected


CHOICES = {
    "model.dtype": schema.DTYPES,
    "sampling.solver": schema.SOLVERS,
    "sampling.guidance_mode": schema.GUIDANCE,
    "blocks.recache": schema.RECACHES,
    "blocks.levels": schema.LEVELS,
    "blocks.noise": schema.NOISE,
    "attention.builder": attention.BUILDERS,
    "attention.backend": attention.BACKENDS,
    "parallel.cfg": parallel.CFG,
    "parallel.backend": parallel.BACKENDS,
    "parallel.link": parallel.LINKS,
    "output.format": schema.FORMATS,
    "output.pixel_format": schema.PIXEL_FORMATS,
}


def test_every_choice_of_a_field_is_documented():
    for key, choices in CHOICES.items():
        row = re.search(rf"^\| `{key}` \|.*", PAGES["configuration.md"], re.MULTILINE)
        assert {*re.findall(r"`([^`]+)`", row[0])} >= {*choices}, key


def shown_preset(name: str) -> list[str]:
    config = load_config(name)
    sampling, video = config.sampling, config.video
    guidance = "none" if sampling.guidance_mode == "none" else f"{sampling.guidance:g}"
    if sampling.guidance_low is not None:
        guidance += f", then {sampling.guidance_low:g}"
    size, numbers = f"{video.width} x {video.height}", (video.frames, video.fps, sampling.steps)
    return [
        *(name, config.model.arch, size, *map(str, numbers)),
        *(sampling.solver, f"{sampling.shift:g}", guidance),
    ]


def test_the_table_of_presets_is_that_of_the_files():
    table = rows("configuration.md", "preset")
    assert sorted(row[0] for row in table) == preset_names()
    assert table == [shown_preset(row[0]) for row in table]


def test_the_table_of_weights_is_what_a_dry_run_says(workplace):
    Image.new("RGB", (64, 48)).save("first.png")
    text = PAGES["configuration.md"]
    header, *lines = re.findall(r"^\| (preset \| tokens .*|`[^`]+` \| \d+ \| \d.*) \|$", text, re.M)
    parts = header.split(" | ")[2:]
    assert len(lines) == len(preset_names()) - 1  # all but tiny, which needs none
    for line in lines:
        name, tokens, *sizes = (cell.strip("`") for cell in line.split(" | "))
        arch = ARCHS[load_config(name).model.arch]
        image = "first.png" if arch.image == "channels" else None
        last = ["video.last_image=first.png"] if arch.dit.image_positions else []
        said = describe(plan_render("a cat", preset=name, image=image, overrides=last))
        weights = re.search(r"^weights +(.*)$", said, re.MULTILINE)[1]
        assert f"\nwindow   {tokens} tokens, attention dense\n" in said
        shown = [f"{part} {size}" for part, size in zip(parts, sizes, strict=True) if size != "-"]
        assert ", ".join(shown) == weights
