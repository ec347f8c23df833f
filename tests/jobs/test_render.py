"""A request becomes the same frames every time, and one that fails leaves nothing behind."""

import os
import pwd
import time

import av
import numpy as np
import pytest
import tiny_pipeline
from command import SMALL, files_in, forbid_loading
from PIL import Image
from safetensors.torch import load_file, save_file

import longreel
from longreel.configs.load import load_config
from longreel.jobs.home import durable
from longreel.jobs.home.lock import read_by_us
from longreel.jobs.metadata import metadata
from longreel.jobs.render import plan_render, render_file
from longreel.models import arch as archs
from longreel.pipeline.errors import RenderError
from longreel.pipeline.request import Request


def render(path, *overrides, prompt="a cat", **request):
    return longreel.render(prompt, path, overrides=[*SMALL, *overrides], **request)


def frames_of(*overrides, prompt="a cat", **request):
    chunks = longreel.stream(prompt, overrides=[*SMALL, *overrides], **request)
    return np.concatenate([chunk.frames for chunk in chunks])


@pytest.fixture(scope="module")
def plain():
    """What is rendered where nothing else is asked for, by an encoder and not from a cache."""
    frames = frames_of("model.text_cache=")
    frames.flags.writeable = False
    return frames


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setitem(archs.ARCHS, "test-t2v", tiny_pipeline.ARCHS["test-t2v"])
    folder = tmp_path / "checkpoint"
    tiny_pipeline.write_checkpoint(folder, tiny_pipeline.ARCHS["test-t2v"])
    return folder


def spoil(folder, name, change):
    (path,) = folder.glob("*.safetensors")
    state = load_file(path)
    state[name] = change(state[name])
    save_file(state, path)


def test_what_renders_that_were_killed_have_left_is_removed_by_the_next(tmp_path):
    killed, held, fresh = (tmp_path / f".longreel-{name}.part" for name in "abc")
    for left in (killed, held, fresh):
        (left / "renders" / "one").mkdir(parents=True)
        if left != fresh:
            os.utime(left, (time.time() - 3600,) * 2)
    with read_by_us(held):
        render(tmp_path / "a.mp4")
    assert {*tmp_path.iterdir()} == {held, fresh, tmp_path / "a.mp4"}


def test_the_same_request_gives_the_same_bytes(tmp_path):
    first = render(tmp_path / "a.mp4")
    render(tmp_path / "b.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert (first.path, first.num_frames, first.fps) == (tmp_path / "a.mp4", 9, 16)
    assert len(list(first.frames)) == 9


def test_frames_depend_on_seed_prompt_and_steps(plain):
    assert plain.std() > 5
    for other in (
        frames_of(seed=1),
        frames_of(prompt="a dog"),
        frames_of("sampling.steps=4"),
        frames_of("sampling.negative_prompt=a dog"),
    ):
        assert other.shape == plain.shape
        assert not np.array_equal(other, plain)


def test_frames_do_not_depend_on_a_tile_that_holds_them_nor_on_the_output(plain):
    assert np.array_equal(frames_of("model.vae_tile=64"), plain)
    assert np.array_equal(frames_of("output.format=png"), plain)
    assert np.array_equal(frames_of("output.crf=40"), plain)


def test_frames_do_not_depend_on_whether_the_prompt_is_in_the_cache(plain, tmp_path):
    cache = f"model.text_cache={tmp_path / 'cache'}"
    assert np.array_equal(frames_of(cache), plain)
    kept = files_in(tmp_path / "cache")
    assert len(kept) == 2  # the prompt and the negative one
    assert np.array_equal(frames_of(cache), plain)
    assert files_in(tmp_path / "cache") == kept


def test_a_cache_that_cannot_be_used_costs_a_warning_and_no_frame(plain, caplog):
    assert np.array_equal(frames_of("model.text_cache=/proc/cache"), plain)
    assert "text cache /proc/cache" in caplog.text


def test_a_user_without_a_home_has_no_cache_and_no_folder_called_tilde(
    plain, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    assert np.array_equal(frames_of("model.text_cache=~/.cache/longreel/text"), plain)
    assert "model.text_cache=~/.cache/longreel/text lies in a home folder" in caplog.text
    assert files_in(tmp_path) == {}


def test_pictures_hold_the_frames_of_the_stream(plain, tmp_path):
    video = render(tmp_path / "frames", "output.format=png")
    names = [f"{i:05d}.png" for i in range(9)]
    assert sorted(files_in(tmp_path / "frames")) == [*names, "config.yaml"]
    pictures = []
    for name in names:
        with Image.open(video.path / name) as picture:
            pictures.append(np.array(picture))
    assert np.array_equal(np.stack(pictures), plain)


def test_the_file_says_all_that_it_was_made_from(tmp_path):
    made = render(tmp_path / "a.mp4", "sampling.shift=4.5", prompt="ein Kätzchen", seed=3)
    with av.open(str(made.path)) as container:
        said = container.metadata
    assert (said["prompt"], said["seed"]) == ("ein Kätzchen", "3")
    assert said["longreel"] == longreel.__version__
    (tmp_path / "again.yaml").write_text(said["config"], encoding="utf-8")
    assert load_config(str(tmp_path / "again.yaml")) == made.config
    again = longreel.render(
        said["prompt"], tmp_path / "b.mp4", preset=str(tmp_path / "again.yaml"), seed=3
    )
    assert again.path.read_bytes() == made.path.read_bytes()


def test_changes_of_the_prompt_are_a_line_each_that_can_be_given_again():
    times = ((12345.68, "a dog\n runs"), (4.0, "a bird"))
    request = Request(prompt="a cat", config=load_config("tiny"), prompt_at=times)
    assert metadata(request)["prompt_at"] == "12345.68 a dog runs\n4 a bird"


def test_numbers_may_be_of_numpy(tmp_path):
    """A seed that was drawn; it is kept as JSON while the file is made."""
    ours = render(tmp_path / "a.mp4", seed=3)
    theirs = render(tmp_path / "b.mp4", seed=np.int64(3))
    assert ours.path.read_bytes() == theirs.path.read_bytes()
    changes = [(np.float32(0), "a dog")]
    assert render(tmp_path / "c.mp4", prompt_at=changes).num_frames == 9


def test_a_picture_whose_name_is_no_text_can_be_used(tmp_path, monkeypatch):
    arch = archs.ModelArch(**{**vars(archs.ARCHS["tiny"]), "image": "first-latent"})
    monkeypatch.setitem(archs.ARCHS, "test-first", arch)
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (48, 32), (200, 30, 30)).save(path)
    video = render(tmp_path / "a.mp4", "model.arch=test-first", image=path)
    with av.open(str(video.path)) as container:
        assert container.metadata["image"] == "caf\ufffd.png"


@pytest.mark.parametrize("call", ["render", "stream", "generate_latents"])
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["video.frames=10"], r"^video\.frames=10 .* use 9 or 13"),
        (["model.checkpoint=nowhere"], r"^model\.checkpoint=nowhere is no file"),
        (["sampling.step=3"], r"did you mean sampling\.steps\?"),
    ],
)
def test_a_bad_request_is_refused_by_the_call_itself(
    tmp_path, monkeypatch, call, overrides, message
):
    forbid_loading(monkeypatch)
    output = [tmp_path / "a.mp4"] if call == "render" else []
    with pytest.raises(ValueError, match=message):
        getattr(longreel, call)("a cat", *output, overrides=[*SMALL, *overrides])
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize(
    ("phase", "error", "overrides"),
    [
        ("denoise", KeyboardInterrupt, ()),
        ("denoise", OSError, ("output.format=png",)),
        ("decode", KeyboardInterrupt, ("output.format=png",)),
        ("decode", OSError, ()),
    ],
)
def test_a_render_that_is_interrupted_leaves_what_was_there(tmp_path, phase, error, overrides):
    path = tmp_path / ("frames" if overrides else "a.mp4")
    if not overrides:
        path.write_bytes(b"an older video")
    before = files_in(tmp_path)
    reports = []

    def report(what, done, total, note=""):
        reports.append((what, done))
        if (what, done > 0) == (phase, True):
            raise error

    with pytest.raises(error):
        render_file(plan_render("a cat", overrides=[*SMALL, *overrides]), path, report)
    assert reports[-1] == (phase, 1)  # within a step
    assert files_in(tmp_path) == before


def test_a_checkpoint_of_nan_ends_the_render_at_its_first_step(tmp_path, checkpoint):
    spoil(checkpoint / "transformer", "blocks.1.ffn.net.2.bias", lambda x: x.fill_(float("nan")))
    with pytest.raises(RenderError, match=r"NaN or infinity after step 1 of 3 .*check the weights"):
        render(tmp_path / "a.mp4", "model.arch=test-t2v", f"model.checkpoint={checkpoint}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_an_overflow_of_float16_ends_the_render_and_float32_does_not(tmp_path, checkpoint):
    spoil(checkpoint / "transformer", "blocks.0.ffn.net.0.proj.weight", lambda x: 2e5 * x)
    overrides = ["model.arch=test-t2v", f"model.checkpoint={checkpoint}"]
    with pytest.raises(RenderError, match=r"after step 1 of 3 .*model\.dtype=bfloat16 or float32"):
        render(tmp_path / "a.mp4", *overrides, "model.dtype=float16")
    assert not (tmp_path / "a.mp4").exists()
    assert render(tmp_path / "a.mp4", *overrides).num_frames == 9


def test_a_vae_that_makes_nan_ends_the_render_instead_of_blackening_it(tmp_path, checkpoint):
    spoil(checkpoint / "vae", "decoder.conv_in.bias", lambda x: x.fill_(float("nan")))
    with pytest.raises(RenderError, match=r"VAE made NaN .*frame 0 begins.*model\.vae_dtype="):
        render(tmp_path / "a.mp4", "model.arch=test-t2v", f"model.checkpoint={checkpoint}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(path):
        if path.name.startswith(".a.mp4"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "sync", full)
    with pytest.raises(OSError, match="No space left"):
        render(tmp_path / "a.mp4")
    assert files_in(tmp_path) == {}
