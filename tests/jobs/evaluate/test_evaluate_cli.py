"""`longreel evaluate`: rows of means, pictures, and nothing measured twice."""

import json
import shutil

import numpy as np
import pytest
import torch
from command import files_in, longreel
from diffusers import AutoencoderKLWan
from diffusers.video_processor import VideoProcessor
from few_references import few_references
from PIL import Image

from longreel.jobs.evaluate import records, table
from longreel.jobs.evaluate.clip import make_clip
from longreel.jobs.evaluate.measure import IDEALS
from longreel.jobs.evaluate.settings import Setting, prompt, scene
from longreel.jobs.world.captions import caption
from longreel.jobs.world.draw import draw
from longreel.jobs.world.scene import random_scene
from longreel.models.shipped import shipped_folder

# random weights, as few tokens and steps as there can be
TINY = ("--preset", "tiny", "sampling.steps=1", "sampling.guidance_mode=none", "model.text_cache=")


@pytest.fixture(autouse=True)
def _few_references(monkeypatch):
    few_references(monkeypatch)


def rows(*options):
    done = longreel("evaluate", *options, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)["rows"]


def test_the_truth_is_the_upper_bound(tmp_path):
    out = tmp_path / "out"
    (row,) = rows("--truth", "--prompts", 3, "--frames", 41, "-o", out)
    assert (row["setting"], row["prompts"]) == ("truth 41", 3)
    assert {row[name] for name in ("prompt", "prompt_whole", "identity", "smoothness")} == {1}
    assert row["teleports"] == 0
    assert [*row] == [
        *("setting", "prompts", *IDEALS, "frechet", "first_frame_s", "total_s"),
    ]
    assert {"sheet.png", "plot.png", "scores.jsonl"} <= files_in(out).keys()
    with Image.open(out / "sheet.png") as sheet:
        picture = np.asarray(sheet)
    first = draw(random_scene(0, "held-out"), 0, 1)[0]
    assert picture.shape[1] == 8 * 96
    assert np.array_equal(picture[44 : 44 + 96, :96], first)


def test_the_truth_through_a_vae_is_what_diffusers_makes_of_it(tmp_path):
    (row,) = rows(*("--truth", "--preset", "shapes", "--prompts", 1, "--frames", 9, "-o", tmp_path))
    assert row["setting"] == "shapes vae 9"
    assert 0.5 < row["prompt"] <= 1
    frames = make_clip(Setting(preset="shapes", policy="", frames=9), 0).frames_THWC
    vae = AutoencoderKLWan.from_pretrained(shipped_folder("shipped:shapes", "test") / "vae").eval()
    video = VideoProcessor(vae_scale_factor=8)
    clip = torch.from_numpy(draw(scene(0), 0, 9)).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        back = vae.decode(vae.encode(clip).latent_dist.mode()).sample
    theirs = (video.postprocess_video(back, output_type="np")[0] * 255).round()
    assert np.abs(frames - theirs).max() <= 1  # latents are normalised between the two


def test_prompts_are_those_of_held_out_scenes():
    for number in range(20):
        assert scene(number) == random_scene(number, "held-out")
        assert prompt(number) == caption(random_scene(number, "held-out"), number)
    assert len({prompt(number) for number in range(64)}) == 64


def test_what_is_measured_is_not_measured_again(tmp_path, monkeypatch):
    options = ("--truth", "--frames", 17, "-o", tmp_path / "out")
    (before,) = rows(*options, "--prompts", 2)
    made = []

    def make(setting, number):
        made.append(number)
        return make_clip(setting, number)

    monkeypatch.setattr(records, "make_clip", make)
    assert rows(*options, "--prompts", 2) == [before]
    assert made == []
    scores = tmp_path / "out" / "scores.jsonl"
    scores.write_text(scores.read_text()[:-40])  # a crash in mid-line
    rows(*options, "--prompts", 3)
    assert made == [1, 2]
    *whole, _cut, again, third = scores.read_text().splitlines()
    assert [json.loads(line)["number"] for line in (*whole, again, third)] == [0, 1, 2]


def test_lines_that_cannot_be_read_cost_their_clips_alone(tmp_path, monkeypatch, caplog):
    options = ("--truth", "--frames", 17, "--prompts", 3, "-o", tmp_path)
    (before,) = rows(*options)
    scores = tmp_path / "scores.jsonl"
    first, second, third = scores.read_text().splitlines()
    earlier = json.loads(second)
    del earlier["scores"]["drift"]  # that the version which wrote it had not
    lines = [first[:-9], json.dumps(earlier), "7", third]
    scores.write_text("\n".join(lines))
    made = []
    monkeypatch.setattr(records, "make_clip", lambda *of: made.append(of[1]) or make_clip(*of))
    (after,) = rows(*options)
    assert made == [0, 1]
    assert {**after, "total_s": 0, "first_frame_s": 0} == {
        **before,
        "total_s": 0,
        "first_frame_s": 0,
    }
    assert f"{scores}, line 2 is left out (other scores)" in caplog.text
    assert len(caplog.records) == 3
    assert scores.read_text().splitlines()[:4] == lines  # which another process may be adding to


def test_scores_without_their_pictures_are_kept(tmp_path, monkeypatch):
    options = ("--truth", "--frames", 17, "--prompts", 2, "-o", tmp_path)
    (before,) = rows(*options)
    gone, cut = (tmp_path / "strips").iterdir()
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:99])
    monkeypatch.setattr(records, "make_clip", None)
    assert rows(*options) == [before]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 96, 2 * (96 + 22 + 22))


def test_a_clip_of_weights_that_were_trained_on_is_another(tmp_path):
    shutil.copytree(shipped_folder("shipped:shapes", "test"), tmp_path / "model")

    def identities():
        of = (f"model.checkpoint={tmp_path / 'model'}",)
        whole = Setting(preset="shapes", policy="whole", frames=17, overrides=of)
        vae = Setting(preset="shapes", policy="", frames=17, overrides=of)
        return whole.identity(0), vae.identity(0)

    before = identities()
    assert identities() == before
    for part in ("transformer", "vae"):
        weights = tmp_path / "model" / part / "diffusion_pytorch_model.safetensors"
        data = bytearray(weights.read_bytes())
        data[len(data) // 2] ^= 1
        weights.write_bytes(data)
        now = identities()
        assert all(one != other for one, other in zip(now, before, strict=True))
        before = now


def test_references_are_not_drawn_for_what_has_no_distance(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "reference_features", None)
    (row,) = rows("--truth", "--frames", 17, "--prompts", 1, "-o", tmp_path)
    assert row["frechet"] is None


def test_every_policy_at_every_length_with_every_setting_is_a_row(tmp_path):
    done = longreel(
        *("evaluate", "--preset", "tiny", "--dry-run", "--prompts", 5),
        *("--policy", "whole", "--policy", "dualparal-grouped", "--frames", 81, "--frames", 257),
        *("--setting", "sampling.steps=2", "--setting", "sampling.steps=4 sampling.shift=3"),
    )
    lines = done.out.splitlines()
    assert len(lines) == len({*lines}) == 8
    assert "tiny dualparal-grouped 257 sampling.steps=4 sampling.shift=3: 5 prompts" in lines


def test_an_untrained_model_keeps_no_prompt(tmp_path):
    table = longreel(
        *("evaluate", "--prompts", 1, "--frames", 9, "--policy", "whole"),
        *("--policy", "dualparal-grouped", "-o", tmp_path / "out", *TINY),
    )
    assert table.code == 0, table.err
    assert table.out.splitlines()[0].startswith("(1) tiny whole 9 sampling.steps=1")
    scores = dict(
        line.split()[:2] for line in table.out.splitlines() if line.startswith(("prompt ", "ide"))
    )
    assert float(scores["prompt"]) < 0.3
    assert float(scores["identity"]) == 0


def test_borders_are_the_first_frames_of_blocks():
    setting = Setting(
        preset="tiny",
        policy="dualparal",
        frames=21,
        overrides=("blocks.size=2", "sampling.steps=1", "sampling.guidance_mode=none"),
    )
    clip = make_clip(setting, 0)
    assert clip.frames_THWC.shape == (21, 96, 96, 3)
    # two latents a block, of which the first is one frame: 1 + 4, then 8 each
    assert [*clip.borders] == [5, 13]
    assert 0 < clip.first_frame_s <= clip.total_s


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--truth", "--policy", "whole"), "leave these out"),
        (("--truth", "sampling.steps=4"), "leave these out"),
        (("--frames", 2), "no way that a thing moves"),
        (("--frames", 18), "use 17 or 21"),
        (("--policy", "wholly"), "whole"),
        (("blocks.left=4", "--policy", "whole"), "blocks.left"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(options, said, tmp_path):
    done = longreel("evaluate", *options, "-o", tmp_path / "out")
    assert done.code == 2
    assert said in done.message
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_folder_for_scores(tmp_path):
    (tmp_path / "out").write_text("mine")
    done = longreel("evaluate", "--truth", "--prompts", 1, "-o", tmp_path / "out")
    assert done.code == 2
    assert f"--output={tmp_path / 'out'} cannot be made a folder (Not a directory)" in done.message
