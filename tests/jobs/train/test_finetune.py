"""A Wan-shaped checkpoint learns from a folder of clips, through the same loop."""

import json
import shutil
from dataclasses import replace
from functools import partial

import av
import numpy as np
import pytest
import tiny_pipeline
import torch
from diffusers import WanTransformer3DModel
from forked_ranks import fork_ranks
from PIL import Image
from safetensors.torch import load_file
from tiny_wan import diffusers_model
from toy_recipe import build_of_arch
from video_file import save

from longreel.configs.train_schema import (
    DataConfig,
    FinetuneConfig,
    OptimizerConfig,
    ReportConfig,
    RunConfig,
    TrainConfig,
)
from longreel.jobs.train import clips
from longreel.jobs.train.finetune_recipe import FinetuneRecipe, FlowLoss
from longreel.jobs.train.launch import train
from longreel.jobs.train.recipes import prepare_recipe
from longreel.models import arch as archs
from longreel.models.checkpoint import check_transformer
from longreel.models.text import TextSource, encode_prompts
from longreel.models.wan_load import load_dit

ARCH = tiny_pipeline.ARCHS["test-t2v"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint, and two captioned clips, one longer than needed."""
    folder = tmp_path_factory.mktemp("finetune")
    tiny_pipeline.write_checkpoint(folder / "checkpoint", ARCH)
    (folder / "clips").mkdir()
    rng = np.random.default_rng(0)
    for name, frames in (("a", 5), ("b", 8)):
        path = folder / "clips" / f"{name}.mp4"
        save(path, rng.integers(0, 255, (frames, 32, 48, 3), np.uint8), fps=8)
        path.with_suffix(".txt").write_text(f"a red cat {name}\n")
    return folder


@pytest.fixture(autouse=True)
def _arch(monkeypatch):
    monkeypatch.setitem(archs.ARCHS, "test-t2v", ARCH)


def config(place, output, steps=4, frames=5, **finetune):
    return TrainConfig(
        recipe="finetune",
        steps=steps,
        run=RunConfig(output=str(output), device="cpu"),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup=0, ema=0.5),
        report=ReportConfig(log_every=1, sheet_every=2),
        finetune=FinetuneConfig(
            checkpoint=str(place / "checkpoint"), arch="test-t2v", clips=2, **finetune
        ),
        data=DataConfig(
            folder=str(place / "clips"),
            cache=str(place / "cache"),
            height=32,
            width=32,
            frames=frames,
        ),
    )


def moved(place, folder):
    """Largest change of each tensor of the exported transformer."""
    before = load_dit(place / "checkpoint/transformer", ARCH.dit, device=CPU, dtype=torch.float32)
    check_transformer(str(folder / "model"), "transformer", ARCH.dit)
    assert_diffusers_loads(folder / "model/transformer")
    after = load_dit(folder / "model/transformer", ARCH.dit, device=CPU, dtype=torch.float32)
    theirs = dict(after.named_parameters())
    return {
        name: (theirs[name] - tensor).abs().max().item()
        for name, tensor in before.named_parameters()
    }


def assert_diffusers_loads(folder):
    stated = WanTransformer3DModel.load_config(folder)
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    WanTransformer3DModel.from_config(stated).load_state_dict(tensors)


def test_an_adapter_is_learnt_and_written_alone(place, tmp_path):
    assert train(config(place, tmp_path))
    adapter = load_file(tmp_path / "model/pytorch_lora_weights.safetensors")
    assert [path.name for path in (tmp_path / "model").iterdir()] == [
        "pytorch_lora_weights.safetensors"
    ]
    learnt = [part for name, part in adapter.items() if "lora_B" in name]
    assert len(learnt) == ARCH.dit.num_layers * 10
    assert all(part.abs().max() > 0 for part in learnt)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (6 * 32, 2 * 32)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]


def test_merged_it_is_a_transformer_changed_where_the_adapters_are(place, tmp_path):
    train(config(place, tmp_path, export="merged"))
    for name, change in moved(place, tmp_path).items():
        layer = name.startswith("blocks.") and ".norm" not in name and name.endswith("weight")
        assert (change > 0) == layer, name


def test_full_fine_tuning_moves_every_weight(place, tmp_path):
    """Of a checkpoint whose configuration is in its authors' words, which are not diffusers'."""
    stated = place / "checkpoint/transformer/config.json"
    before, dit = stated.read_text(), ARCH.dit
    same = ("dim", "num_heads", "num_layers", "ffn_dim", "text_dim", "freq_dim", "eps")
    words = {name: getattr(dit, name) for name in same}
    words |= {"_class_name": "WanModel", "in_dim": dit.in_channels, "out_dim": dit.out_channels}
    stated.write_text(json.dumps(words))
    try:
        train(config(place, tmp_path, method="full"))
    finally:
        stated.write_text(before)
    assert all(change > 0 for change in moved(place, tmp_path).values())


def test_the_loss_is_flow_matching_by_diffusers_transformer(place):
    settings = config(place, place / "unused")
    prepare_recipe(settings)
    recipe = FinetuneRecipe(settings)
    batch = recipe.batch(0, 0, 1)
    theirs = diffusers_model(ARCH.dit)
    theirs.load_state_dict(
        load_file(place / "checkpoint/transformer/diffusion_pytorch_model.safetensors")
    )
    sigma = batch["sigma_B"].view(-1, 1, 1, 1, 1)
    assert (sigma > 0).all()
    assert (sigma < 1).all()
    noisy = (1 - sigma) * batch["clip_BCTHW"] + sigma * batch["noise_BCTHW"]
    with torch.no_grad():
        velocity = theirs(noisy, 1000 * batch["sigma_B"], batch["text_BSD"]).sample
        expected = (velocity - (batch["noise_BCTHW"] - batch["clip_BCTHW"])).square().mean()
        # other kernels for the same sums
        torch.testing.assert_close(recipe.model(**batch)[0], expected, rtol=1e-4, atol=1e-5)


def test_clips_are_encoded_once_and_again_when_they_change(place, monkeypatch, tmp_path):
    settings = config(place, place / "unused")
    prepare_recipe(settings)

    def encoded(*_, **__):
        raise AssertionError("encoded again")

    monkeypatch.setattr(clips, "_encode", encoded)
    prepare_recipe(settings)
    caption = place / "clips/a.txt"
    before = caption.read_text()
    caption.write_text("a blue dog")
    with pytest.raises(AssertionError, match="encoded again"):
        prepare_recipe(settings)
    caption.write_text(before)


@pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer"])
def test_a_checkpoint_that_is_replaced_encodes_clips_of_its_own(place, tmp_path, part):
    """Its folder keeps its name: what another model has encoded is nothing that it knows."""
    settings = config(place, tmp_path / "run")
    copied = shutil.copytree(place / "checkpoint", tmp_path / "checkpoint")
    settings = replace(
        settings,
        finetune=replace(settings.finetune, checkpoint=str(copied)),
        data=replace(settings.data, cache=str(tmp_path / "cache")),
    )
    prepare_recipe(settings)
    before = {path.name for path in (tmp_path / "cache").iterdir()}
    (file,) = (
        path
        for path in (copied / part).iterdir()
        if path.suffix == ".safetensors" or path.name == "tokenizer.json"
    )
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    if part == "tokenizer":
        data = file.read_bytes() + b" "
    file.write_bytes(data)
    prepare_recipe(settings)
    after = {path.name for path in (tmp_path / "cache").iterdir()}
    assert len(after) == 2 * len(before) == 6


def test_captions_are_kept_without_the_zeros_that_the_model_reads_past_them(place, tmp_path):
    settings = config(place, tmp_path / "run")
    prepare_recipe(settings)
    recipe = FinetuneRecipe(settings)
    source = TextSource(
        encoder=place / "checkpoint/text_encoder",
        tokenizer=place / "checkpoint/tokenizer",
        text_len=ARCH.text_len,
        text_dim=ARCH.dit.text_dim,
    )
    wanted = {
        text.numpy().tobytes()
        for text in encode_prompts(
            ["a red cat a", "a red cat b", ""],
            source,
            device="cpu",
            dtype=torch.float32,
            cache=None,
        )
    }
    batches = (recipe.batch(step, 0, 1) for step in range(20))
    read = {text.numpy().tobytes() for batch in batches for text in batch["text_BSD"]}
    assert read == wanted
    for file in (place / "cache").iterdir():
        text_SD = load_file(file)["text_SD"]
        assert len(text_SD) < ARCH.text_len
        assert (text_SD != 0).any(dim=1).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda video: video.write_bytes(b"not a video"), r"a\.mp4 cannot be read as a video \("),
        (lambda video: video.write_bytes(b""), r"a\.mp4 cannot be read as a video \("),
        (lambda video: save_sound(video), r"a\.mp4 cannot be read as a video \("),
        (
            lambda video: video.with_suffix(".txt").write_bytes(b"a caf\xe9"),
            r"a\.txt is not UTF-8 \(.* at byte 5\)",
        ),
    ],
)
def test_a_clip_that_cannot_be_read_is_named(place, tmp_path, spoil, message):
    folder = shutil.copytree(place / "clips", tmp_path / "clips")
    (folder / "._a.mp4").write_bytes(b"what a Mac leaves beside a file")
    (folder / "more.mp4").mkdir()
    settings = config(place, tmp_path / "run")
    settings = replace(settings, data=replace(settings.data, folder=str(folder)))
    prepare_recipe(settings)
    spoil(folder / "a.mp4")
    with pytest.raises(ValueError, match=rf"^data\.folder={folder}: {message}"):
        train(settings)


def save_sound(path):
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.rate = 44100
        for frame in (silence, None):
            file.mux(stream.encode(frame))


def test_a_cache_that_is_no_folder_is_said_before_anything_is_encoded(place, tmp_path):
    (tmp_path / "cache").touch()
    settings = config(place, tmp_path / "run")
    settings = replace(settings, data=replace(settings.data, cache=str(tmp_path / "cache")))
    with pytest.raises(ValueError, match=r"^data\.cache=.*/cache cannot be made \(File exists\)"):
        train(settings)


def test_what_an_interruption_left_out_is_encoded_later(place):
    """The embedding of no prompt, though every clip is there."""
    settings = config(place, place / "unused")
    prepare_recipe(settings)
    (empty,) = (place / "cache").glob("*-empty.safetensors")
    whole = empty.read_bytes()
    empty.unlink()
    prepare_recipe(settings)
    assert empty.read_bytes() == whole


def test_batches_follow_from_seed_step_and_rank(place):
    settings = config(place, place / "unused")
    prepare_recipe(settings)
    one, other = FinetuneRecipe(settings), FinetuneRecipe(settings)
    one.batch(5, 0, 2)
    for step, rank in ((0, 0), (3, 1)):
        first, again = one.batch(step, rank, 2), other.batch(step, rank, 2)
        assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(one.batch(0, 0, 2)["noise_BCTHW"], one.batch(0, 1, 2)["noise_BCTHW"])


def test_two_ranks_that_share_windows_learn_as_one_process_does(place, tmp_path, monkeypatch):
    fork_ranks(monkeypatch, "longreel.jobs.train.finetune_recipe")
    build = partial(build_of_arch, "test-t2v", ARCH)

    def losses(output, **run):
        settings = config(place, output, steps=3)
        run = RunConfig(output=str(output), device="cpu", dtype="float32", **run)
        assert train(TrainConfig(**vars(settings) | {"run": run}), build)
        return [
            json.loads(line)["loss"] for line in (output / "log.jsonl").read_text().splitlines()
        ]

    together = losses(tmp_path / "two", num_processes=2, sequence_ranks=2)
    # float32 sums over tokens in two parts
    assert together == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_a_copy_leaves_the_other_ranks_alone(place):
    import copy

    group = object()
    loss = FlowLoss(FinetuneRecipe(config(place, place / "unused")).dit, group)
    assert copy.deepcopy(loss)._groups == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 9}, r"data\.frames=9 is more than the 5 of .*a\.mp4"),
        ({"arch": "test-i2v"}, r"finetune\.arch=test-i2v reads pictures"),
        ({"arch": "test-causal"}, r"finetune\.arch=test-causal sees no later latents"),
        ({"arch": "skyreels-v2-df-1.3b"}, r"skyreels-v2-df-1\.3b is told the frame rate"),
        ({"sequence_ranks": 2}, r"run\.sequence_ranks=2 cannot share 27 tokens evenly"),
        ({"arch": "wan2.2-ti2v-5b", "height": 48}, r"data\.height=48 .* tokens of 32 pixels"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(place, tmp_path, change, message, monkeypatch):
    monkeypatch.setitem(archs.ARCHS, "test-i2v", tiny_pipeline.ARCHS["test-i2v"])
    monkeypatch.setitem(archs.ARCHS, "test-causal", replace(ARCH, causal_latents=3))
    settings = config(place, tmp_path)
    arch = change.pop("arch", settings.finetune.arch)
    if num := change.pop("sequence_ranks", 0):
        shared = replace(settings.run, sequence_ranks=num, num_processes=num)
        settings, change = replace(settings, run=shared), {"frames": 9, "height": 48, "width": 48}
        monkeypatch.setattr(clips, "_encode", None)  # it is said before minutes of encoding
    finetune, data = replace(settings.finetune, arch=arch), replace(settings.data, **change)
    settings = replace(settings, finetune=finetune, data=data)
    with pytest.raises(ValueError, match=message):
        train(settings)


def test_a_video_without_a_caption_is_named(place, tmp_path):
    (place / "clips/a.txt").rename(tmp_path / "a.txt")
    try:
        with pytest.raises(ValueError, match=r"no caption for a\.mp4"):
            train(config(place, tmp_path / "run"))
    finally:
        (tmp_path / "a.txt").rename(place / "clips/a.txt")
