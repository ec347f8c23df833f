"""A render with adapters is one of a transformer that they were merged into."""

import pytest
import tiny_pipeline
import torch
from safetensors.torch import load_file, save_file

from longreel.jobs.render import plan_render, render_latents
from longreel.models import arch as archs
from longreel.pipeline.parts import check_parts, fingerprints

EXPERTS = "transformer", "transformer_2"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint of two experts, one with their adapters merged in, and these."""
    root = tmp_path_factory.mktemp("adapters")
    for name in ("plain", "merged"):
        tiny_pipeline.write_checkpoint(root / name, tiny_pipeline.ARCHS["test-a14b"])
    for number, expert in enumerate(EXPERTS):
        file = root / "merged" / expert / "diffusion_pytorch_model.safetensors"
        state = load_file(root / "plain" / expert / file.name)
        adapter = {}
        g = torch.Generator().manual_seed(number)
        for module in ("blocks.0.attn1.to_v", "blocks.1.ffn.net.0.proj"):
            weight = state[f"{module}.weight"]
            down = torch.randn(2, weight.shape[1], generator=g)
            up = torch.randn(len(weight), 2, generator=g)
            adapter |= {
                f"transformer.{module}.lora_A.weight": down,
                f"transformer.{module}.lora_B.weight": up,
            }
            state[f"{module}.weight"] = weight + 0.5 * (up @ down)
        save_file(state, file, {"format": "pt"})
        save_file(adapter, root / f"{expert}.safetensors")
    return root


@pytest.fixture
def latents(written, monkeypatch, tmp_path):
    monkeypatch.setitem(archs.ARCHS, "test-a14b", tiny_pipeline.ARCHS["test-a14b"])

    def plan(checkpoint, *overrides):
        return plan_render(
            "a cat",
            preset="tiny",
            frames=5,
            overrides=[
                "model.arch=test-a14b",
                f"model.checkpoint={written / checkpoint}",
                f"model.text_cache={tmp_path}",
                "model.boundary=0.8",
                "video.height=32",
                "video.width=48",
                "sampling.steps=3",
                *overrides,
            ],
        )

    return plan


def both(written):
    return [
        f"model.{field}={written / expert}.safetensors@0.5"
        for field, expert in zip(("lora", "lora_low"), EXPERTS, strict=True)
    ]


def test_each_expert_gets_its_own(latents, written):
    plain, merged = render_latents(latents("plain")), render_latents(latents("merged"))
    ours = render_latents(latents("plain", *both(written)))
    assert torch.equal(ours, merged)
    assert not torch.equal(ours, plain)
    for field in both(written):
        one = render_latents(latents("plain", field))
        assert not torch.equal(one, merged)
        assert not torch.equal(one, plain)


def test_an_adapter_is_one_of_the_weights_that_a_render_was_begun_with(latents, written):
    plan = latents("plain", *both(written))
    held = fingerprints(plan)
    assert held.keys() - fingerprints(latents("plain")).keys() == {
        "transformer adapter 0",
        "transformer_2 adapter 0",
    }
    file = written / "transformer.safetensors"
    before = file.read_bytes()
    try:
        save_file({k: 2 * v for k, v in load_file(file).items()}, file)
        now = fingerprints(plan)
    finally:
        file.write_bytes(before)
    assert {part for part in held if held[part] != now[part]} == {"transformer adapter 0"}


def test_the_low_noise_experts_adapter_is_no_more_ignored_than_the_others(latents, written):
    with pytest.raises(ValueError, match=r"model\.lora_low=.* would be added to untrained weights"):
        check_parts(latents("plain", both(written)[1], "model.checkpoint=random"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.lora=nowhere", "model.lora=nowhere is no file or folder here"),
        ("model.checkpoint=random", "model.lora=.* would be added to untrained weights"),
        ("model.boundary=0", "model.lora_low=.* means one expert; set model.lora"),
    ],
)
def test_what_cannot_be_added_is_said_before_anything_is_loaded(latents, written, override, words):
    with pytest.raises(ValueError, match=words):
        check_parts(latents("plain", *both(written), override))


def test_the_tokenizer_is_one_of_the_parts_that_a_render_was_begun_with(latents, written):
    plan = latents("plain")
    held = fingerprints(plan)
    file = written / "plain" / "tokenizer" / "tokenizer.json"
    before = file.read_bytes()
    try:
        file.write_bytes(before + b" ")
        now = fingerprints(plan)
    finally:
        file.write_bytes(before)
    assert {part for part in held if held[part] != now[part]} == {"tokenizer"}
