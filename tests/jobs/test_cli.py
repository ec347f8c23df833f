"""The command line, as a user meets it: what goes wrong is one clear line, and no file is left."""

import io
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import rich.console
from command import SMALL, files_in, forbid_loading, longreel
from PIL import Image

import longreel as package
from longreel.configs import load
from longreel.jobs.home import record
from longreel.jobs.progress import progress

FLF2V = "model.arch=wan2.1-flf2v-14b"
I2V = ("--preset", "wan2.1-i2v-14b")
STOPPED = "longreel: stopped; no incomplete file is left behind"
WAIT_S = 120  # for what takes a second


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with things in it that can be mistaken for what is needed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "notes.png").write_text("no picture")
    (tmp_path / "twice.yaml").write_text("1: a dog\n1.0: a bird\n")
    Image.effect_noise((60, 40), 90).save(tmp_path / "grey.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "grey.png").read_bytes()[:-300])
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "tinny"], ["preset=tinny is no preset", "mean tiny?", "one of"]),
        (
            ["--preset", "~nobody-here/x.yaml"],
            ["preset=~nobody-here/x.yaml cannot be read", "give"],
        ),
        (["--preset", "no.yaml"], ["preset=no.yaml cannot be read", "give the path"]),
        (["sampling.step=3"], ["sampling.step=3 sets no field", "mean sampling.steps?"]),
        (["--frames", "18"], ["video.frames=18", "no whole number of latents", "use 17 or 21"]),
        (["--frames", "0"], ["video.frames=0 never ends", "longreel.stream()"]),
        (["--frames", "-4"], ["video.frames=-4 leaves nothing to show", "0 or more"]),
        (
            ["--frames", "100001", "blocks.policy=whole"],
            ["video.frames=100001 needs", "at most 4093", "dualparal-grouped"],
        ),
        (["--frames", "9", "video.frames=5"], ["frames=9 and video.frames=5", "leave one out"]),
        (["video.height=70"], ["video.height=70 is off", "use 64 or 80"]),
        (["video.width=1000000000"], ["video.width=1000000000 needs", "at most 16384"]),
        (["video.fps=0"], ["video.fps=0", "no frame rate", "from 1 to 240"]),
        (["video.fps=24.5"], ["video.fps=24.5 is not a whole number", "write it like"]),
        (["sampling.steps=0"], ["sampling.steps=0", "from 1 to 1000"]),
        (["sampling.shift=0"], ["sampling.shift=0", "outside 0 to 1", "above 0"]),
        (["sampling.shift=1e9"], ["sampling.shift=1000000000.0", "same level", "1 to 20"]),
        (["sampling.guidance=nan"], ["sampling.guidance=nan", "NaN", "finite number"]),
        (["sampling.solver=unipc"], ["sampling.solver=unipc", "mean unipc2?", "one of"]),
        (["blocks.policy=dualparallel"], ["blocks.policy=dualparallel", "mean dualparal?"]),
        (
            ["blocks.policy=forcing", "blocks.causal=5", "model.arch=wan2.2-ti2v-5b"],
            ["blocks.causal=5", "trained to see both sides", "leave it out", "SkyReels-V2"],
        ),
        (
            ["blocks.policy=forcing", "blocks.causal=5", "model.arch=self-forcing-1.3b"],
            ["blocks.causal=5", "trained in runs of 3", "leave it out"],
        ),
        (["blocks.policy=causal"], ["blocks.policy=causal", "see both sides", "self-forcing"]),
        (
            ["blocks.policy=buffer", "model.arch=wan2.1-t2v-1.3b"],
            ["blocks.policy=buffer", "different levels", "skyreels-v2-df-1.3b"],
        ),
        (["parallel.num_stages=0"], ["parallel.num_stages=0 leaves no stage", "1 or more"]),
        (["parallel.cfg=apart"], ["parallel.cfg=apart", "batch, split"]),
        (
            ["parallel.cfg=split", "sampling.guidance=1"],
            ["parallel.cfg=split gives", "guides no step", "set parallel.cfg=batch"],
        ),
        (
            ["parallel.num_stages=2", "parallel.devices=3"],
            ["parallel.devices=3 leaves 1 device without", "at most 2", "0 for devices of its own"],
        ),
        (["parallel.num_stages=9"], ["parallel.num_stages=9 leaves 1 stage", "at most 8"]),
        (
            ["parallel.num_stages=4", "blocks.policy=dualparal", "sampling.steps=3"],
            ["would leave 1 stage", "keeps 3 blocks in flight", "sampling.steps to at least 4"],
        ),
        (
            ["--frames", "129", "--prompt-at", "99", "a dog"],
            ["prompt_at=99 is after the last", "earlier"],
        ),
        (["--frames", "129", "--prompt-at=99", "a dog"], ["prompt_at=99 is after the last"]),
        (["--prompt-at", "99 a dog", "--frames", "129"], ["after the last of 129 frames"]),
        (["--prompt-at", "2.5", "--frames", "129"], ["prompt_at=2.5 has an empty prompt"]),
        (["--prompt-at", "soon", "a dog"], ["prompt_at='soon a dog'", "give seconds"]),
        (["--prompts", "notes.png"], ["prompts=notes.png is no list", "12.5: a dog runs"]),
        (["--prompts", "twice.yaml"], ["prompts=twice.yaml has two prompts for one second"]),
        (["--prompts", "no.yaml"], ["prompts=no.yaml cannot be read", "YAML"]),
        (["output.crf=99"], ["output.crf=99", "from 0 to 51"]),
        (["--seed", "-1"], ["seed=-1 cannot key the noise", "0 to 9223372036854775807"]),
        (["--seed", str(2**63)], ["seed=9223372036854775808 cannot", "choose one in that range"]),
        (["model.device=cuda:99"], ["model.device=cuda:99 is not there", "model.device=cpu"]),
        (["model.device=gpu"], ["model.device=gpu is no device", "auto, cpu, cuda"]),
        (["model.checkpoint=nowhere"], ["model.checkpoint=nowhere is no file", "correct it"]),
        (["model.checkpoint=" + "n" * 300], ["model.checkpoint=nnn", "is no file", "correct it"]),
        (
            ["model.checkpoint=~nobody-here/x"],
            ["model.checkpoint=~nobody-here/x is no file", "correct"],
        ),
        (["model.checkpoint="], ["model.checkpoint= is empty", "or random"]),
        ([*I2V], ["image is missing", "--image FILE"]),
        (["--image", "grey.png"], ["image=grey.png would be ignored", "leave it out"]),
        (["video.last_image=grey.png"], ["video.last_image=grey.png would", "leave it out"]),
        ([*I2V, "--image", "no.png"], ["image=no.png does not exist", "give the path"]),
        ([*I2V, "--image", "n" * 300], ["image=nnn", "does not exist", "give the path"]),
        ([*I2V, "--image", "folder"], ["image=folder is not a file", "give the path"]),
        ([*I2V, "--image", "notes.png"], ["image=notes.png is not an image", "PNG or JPEG"]),
        ([*I2V, "--image", "cut.png"], ["image=cut.png cannot be read", "save it again"]),
        (
            [*I2V, "--image", "grey.png", "video.last_image=cut.png", FLF2V],
            ["video.last_image=cut.png cannot be read", "save it again"],
        ),
        (["-o", "no/cat.mp4"], ["output=no/cat.mp4 lies in", "does not exist", "make that"]),
        (["-o", "folder"], ["output=folder is a folder", "such as folder/video.mp4"]),
        (["-o", "folder.mp4"], ["output=folder.mp4 is a folder", "folder.mp4/video.mp4"]),
        (["-o", "cat.mov"], ["output=cat.mov does not end in .mp4", "name it cat.mp4"]),
        (["-o", "/proc/cat.mp4"], ["output=/proc/cat.mp4 needs a file", "choose a folder"]),
        (["-o", "~nobody-here/cat.mp4"], ["output=~nobody-here/cat.mp4 lies in", "not exist"]),
        (["--dry-run", "-o", "no/cat.mp4"], ["output=no/cat.mp4 lies in", "make that"]),
        (["walks", "home"], ["'walks' after the prompt", 'longreel render "a cat walks"']),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_with_the_way_out(folder, monkeypatch, arguments, words):
    forbid_loading(monkeypatch)
    before = files_in(folder)
    done = longreel("render", "a cat", *arguments)
    assert (done.code, done.out) == (2, "")
    assert [word for word in words if word not in done.message] == []
    assert files_in(folder) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([""], ["prompt='' is empty", "describe"]),
        ([" \n"], ["is empty", "describe"]),
        (["sampling.steps=3", "a cat"], ["prompt=sampling.steps=3 is an override", "first"]),
        (["--", "-a cat", "--dry-run"], ["'--dry-run' after the prompt", 'before the "--"']),
        ([b"caf\xe9".decode(errors="surrogateescape")], ["are not UTF-8", "set the terminal"]),
    ],
)
def test_a_mistaken_prompt_is_one_line_with_the_way_out(folder, monkeypatch, arguments, words):
    forbid_loading(monkeypatch)
    before = files_in(folder)
    done = longreel("render", *arguments)
    assert (done.code, done.out) == (2, "")
    assert [word for word in words if word not in done.message] == []
    assert files_in(folder) == before


def test_a_disk_that_is_too_small_is_found_before_anything_is_loaded(folder, monkeypatch):
    forbid_loading(monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    done = longreel("render", "a cat", *SMALL)
    assert done.code == 2
    said = r"output=a-cat-0\.mp4 and --home=.* may take .* MB and .* are free.*crf=18"
    assert re.search(said, done.message)


@pytest.mark.parametrize("arguments", [["render", "a cat", "--frames", "many"], ["rendr"]])
def test_a_wrong_word_is_a_usage_error(folder, arguments):
    done = longreel(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Usage: " in done.err
    assert "Traceback" not in done.err


def test_nan_is_an_error_of_its_own_code_and_leaves_no_file(folder, monkeypatch):
    monkeypatch.setattr(
        "longreel.models.wan.WanDiT.head",
        lambda self, state: float("nan") * state.tokens_BLD.new_ones(1, 16, 3, 4, 6),
    )
    before = files_in(folder)
    done = longreel("render", "a cat", "-o", "cat.mp4", *SMALL)
    assert (done.code, done.out) == (1, "")
    last = done.err.splitlines()[-1]
    assert last.startswith("longreel: latents of block 0 hold NaN or infinity after step 1 of 3")
    assert files_in(folder) == before


def test_too_little_memory_is_explained(folder, monkeypatch):
    def allocate(*_):
        import torch

        torch.empty(2**60)

    monkeypatch.setattr("longreel.pipeline.codec.encode_texts", allocate)
    done = longreel("render", "a cat", *SMALL)
    assert done.code == 1
    assert re.search(r"memory is not enough .*make video\.height.*smaller", done.message)


def test_a_bug_keeps_its_traceback(folder, monkeypatch):
    monkeypatch.setattr(record, "Generator", None)
    with pytest.raises(TypeError, match="NoneType"):
        longreel("render", "a cat", *SMALL)


@pytest.mark.parametrize(
    ("prompt", "options", "overrides", "name"),
    [
        ("A cat: on the mat!", [], [], "a-cat-on-the-mat-0.mp4"),
        ("-a cat", ["--seed", "3"], [], "a-cat-3.mp4"),
        ("猫", [], [], "video-0.mp4"),
        ("a cat", [], ["output.format=png"], "a-cat-0"),
        ("word " * 10_000, [], [], "word-word-word-word-word-word-word-word-word-wor-0.mp4"),
    ],
)
def test_a_video_is_named_after_its_prompt(folder, prompt, options, overrides, name):
    before = set(files_in(folder))
    short = ("video.frames=1", "sampling.steps=1", *overrides)
    done = longreel("render", *options, "--", prompt, *SMALL, *short)
    assert (done.code, done.out) == (0, f"{name}\n")
    made = set(files_in(folder)) - before
    assert {path.split("/")[0] for path in made} == {name}


def test_progress_is_a_line_a_phase_on_stderr_where_there_is_no_terminal(folder):
    done = longreel("render", "a cat", "-o", "cat.mp4", *SMALL)
    assert (done.code, done.out) == (0, "cat.mp4\n")
    phases = ["reading the prompt", "denoising 3 steps", "decoding 9 frames"]
    lines = done.err.splitlines()
    assert [re.sub(r" in \d+\.\d s$", "", line) for line in lines] == phases


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("step_s", "speed", "left"),
    [(0.25, "4.00 steps/s", "0:00:01"), (60.0, "60.0 s/step", "0:04:00")],
)
def test_a_terminal_shows_steps_speed_and_time_left(monkeypatch, step_s, speed, left):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    now = [0.0]
    monkeypatch.setattr(rich.console, "monotonic", lambda: now[0])
    with progress() as report:
        for done in range(7):
            report("denoise", done, 10)
            now[0] += step_s
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sys.stderr.getvalue())
    assert re.search(rf"denoising .* 6/10 +{speed} +{left}", shown)


def test_version_and_presets_are_printed():
    assert longreel("--version").out == f"longreel {package.__version__}\n"
    lines = longreel("presets").out.splitlines()
    assert [line.split()[0] for line in lines] == load.preset_names()
    assert all(len(line.split(maxsplit=1)) == 2 and len(line) <= 100 for line in lines)


@pytest.mark.parametrize("arguments", [[], ["render"]])
def test_without_arguments_help_is_shown(arguments):
    done = longreel(*arguments)
    assert "Usage: " in done.out + done.err
    assert "Render a prompt to a video file." in done.out + done.err


# Several commands in one fresh interpreter: imports are what such a test pays for.
SCRIPT = """
import contextlib, io, json, os, signal, sys
from longreel.jobs.cli import main

def run(*arguments):
    sys.argv = ["longreel", *arguments]
    try:
        main()
    except SystemExit as stop:
        sys.stdout.flush()
        return stop.code

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "torch._C":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
codes = [run("render", "a cat")]
for name in [name for name in sys.modules if name.split(".")[0] == "torch"]:
    del sys.modules[name]
codes.append(run("render", "a cat", "model.checkpoint=nowhere"))
codes.append(run("render", "a cat", "--preset", "wan2.1-t2v-14b", "--dry-run"))
with contextlib.redirect_stdout(io.StringIO()):
    codes.append(run("evaluate", "--dry-run", "--truth"))
from longreel.jobs.render import plan_render
from longreel.pipeline.backend import make_stage
from longreel.pipeline.parts import check_parts
plan = plan_render("a cat", preset="shapes")
check_parts(plan)
make_stage(plan, range(4), "cpu")
heavy = {name.split(".")[0] for name in sys.modules} & {"diffusers", "transformers", "ray", "sympy"}
print(json.dumps([codes, sorted(heavy)]), file=sys.stderr)
"""


def test_refusals_dry_runs_and_checks_of_what_is_shipped_load_no_library_of_models(tmp_path):
    """Nor does a stage; sympy comes with torch's compiler. And any locale will do."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "latin-1", "LC_ALL": "C", "PYTHONUTF8": "0"},
        capture_output=True,
        timeout=WAIT_S,
    )
    stopped, refused, report = done.stderr.decode().splitlines()
    assert stopped == STOPPED
    assert refused.startswith("longreel: model.checkpoint=nowhere is no file")
    assert report == "[[130, 2, 0, 0], []]"
    # the dry run's text is a preset, its facts comments
    preset = tmp_path / "printed.yaml"
    preset.write_bytes(done.stdout)
    assert load.load_config(str(preset)) == load.load_config("wan2.1-t2v-14b")
    assert "# window   75600 tokens, attention dense" in done.stdout.decode().splitlines()
    assert files_in(tmp_path).keys() == {"printed.yaml"}
