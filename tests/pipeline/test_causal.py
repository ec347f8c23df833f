"""Causal blocks over cached keys, a new prompt with keys made again: beside a plain loop.

The loop follows what LongLive published: block after block at few steps, each once more when it is
clean for its keys and values, the sink and the last ones attended to at positions of the window;
at a new prompt the clean latents in sight go through again, in order, with that prompt.
"""

import pickle
from dataclasses import replace
from functools import cache

import pytest
import tiny_blocks
import tiny_pipeline
import torch
from thread_chain import ThreadBackend

from longreel.jobs.render import plan_render, render_latents
from longreel.models import arch as archs
from longreel.pipeline.generator import Generator
from longreel.pipeline.levels import make_levels
from longreel.pipeline.noise import window_noise
from longreel.pipeline.parts import encode_texts

SIZE, LEFT, SINK, SEED, FRAMES = 2, 4, 2, 11, 61  # 16 latents: eight blocks
TIMES = (1000, 750, 500, 250)
CHANGES = {3: "a dog runs", 4: "a red cat", 7: "the grass"}
TOKENS = 2  # of a latent


@pytest.fixture(autouse=True)
def _arch(monkeypatch):
    for name, arch in tiny_blocks.ARCHS.items():
        monkeypatch.setitem(archs.ARCHS, name, arch)
    arch = replace(tiny_pipeline.ARCHS["test-t2v"], per_latent_timestep=True, causal_latents=SIZE)
    monkeypatch.setitem(archs.ARCHS, "test-few", arch)


def second_of(block, size=SIZE, fps=16):
    return (1 + 4 * (block * size - 1)) / fps


class Attention:
    """diffusers' self-attention over given keys and values and the window's own, rotated here."""

    def __init__(self, rope, before):
        self.rope, self.before = rope, before  # of all latents in sight; entries by layer
        self.made = {}

    def attend(self, layer):
        def call(attn, hidden_states, *args, **kwargs):
            q = attn.norm_q(attn.to_q(hidden_states))
            own = attn.norm_k(attn.to_k(hidden_states)), attn.to_v(hidden_states)
            self.made[layer] = own
            k, v = (
                torch.cat([*(entry[layer][i] for entry in self.before), own[i]], dim=1)
                for i in (0, 1)
            )
            q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, v))
            q, k = self.turn(q), self.turn(k)
            y = torch.nn.functional.scaled_dot_product_attention(
                *(x.transpose(1, 2) for x in (q, k, v))
            )
            return attn.to_out[0](y.transpose(1, 2).flatten(2))

        return call

    def turn(self, x):
        """Queries stand at the end of what is in sight."""
        cos, sin = (table[:, -x.shape[1] :, :, ::2] for table in self.rope)
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


@torch.no_grad()
def velocity(model, latents, timestep, text, before):
    length = latents.shape[2] + sum(entry[0][0].shape[1] // TOKENS for entry in before)
    attention = Attention(model.rope(torch.zeros(1, 16, length, *latents.shape[3:])), before)
    for i, block in enumerate(model.blocks):
        block.attn1.forward = attention.attend(i).__get__(block.attn1)
    out = model(latents, torch.tensor([timestep]), text, return_dict=False)[0]
    return out, attention.made


def plain_loop(model, texts, num_blocks, *, recache):
    levels = make_levels("renoise", len(TIMES), 5.0, TIMES)
    clean, kept, text = [], {}, None
    for b in range(num_blocks):
        seen = [c for c in range(b) if c < SINK // SIZE or c >= b - LEFT // SIZE]
        new, text = texts.get(b), texts.get(b, text)
        if b and new is not None and recache:
            old, kept = seen, {}
            for c in old:
                _, kept[c] = velocity(model, clean[c], 0.0, text, list(kept.values()))
        z = window_noise(SEED, b * SIZE, SIZE, (16, 2, 4))
        for k in range(len(TIMES)):
            v, _ = velocity(model, z, levels.timesteps[k], text, [kept[c] for c in seen])
            z = z - levels.sigmas[k] * v
            if k + 1 < len(TIMES):
                fresh, s = window_noise(SEED, b * SIZE, SIZE, (16, 2, 4), k), levels.sigmas[k + 1]
                z = (1 - s) * z + s * fresh
        clean.append(z)
        _, kept[b] = velocity(model, z, 0.0, text, [kept[c] for c in seen])
    return torch.cat(clean, dim=2)


@pytest.mark.parametrize("recache", ["none", "prompt"])
def test_new_prompts_equal_a_plain_loop_over_diffusers(tmp_path, recache):
    checkpoint = tiny_pipeline.write_checkpoint(tmp_path, archs.ARCHS["test-few"])
    overrides = [
        "model.arch=test-few",
        f"model.checkpoint={checkpoint.folder}",
        "model.text_cache=",
        "video.height=16",
        "video.width=32",
        "sampling.solver=renoise",
        f"sampling.timesteps={list(TIMES)}".replace(" ", ""),
        "sampling.steps=4",
        "sampling.guidance_mode=none",
        "blocks.policy=causal",
        f"blocks.size={SIZE}",
        f"blocks.left={LEFT}",
        f"blocks.sink={SINK}",
        f"blocks.recache={recache}",
        "parallel.num_stages=2",
        "parallel.backend=local",
    ]
    prompt_at = [(second_of(block), text) for block, text in CHANGES.items()]
    request = {"preset": "tiny", "frames": FRAMES, "seed": SEED, "prompt_at": prompt_at}
    plan = plan_render("a cat", **request, overrides=overrides)
    assert plan.schedule.new_prompts == tuple(CHANGES)
    ours = render_latents(plan)

    words = {0: "a cat"} | CHANGES
    texts = dict(zip(words, encode_texts(plan, list(words.values())).split(1), strict=True))
    model = checkpoint.parts["transformer"]
    theirs = plain_loop(model, texts, 8, recache=recache == "prompt")
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0.0)
    other = plain_loop(model, texts, 8, recache=recache != "prompt")
    assert (ours - other).abs().max() > 1e-3


def make_plan(*more, policy="causal-recache", num_stages=1, frames=57, changes=(2, 3)):
    more = tiny_blocks.shallow(policy), *more, f"parallel.num_stages={num_stages}"
    settings = tiny_blocks.overrides(policy, *more)
    words = ("a dog", "a bird", "a fish")
    at = [(second_of(block, size=3), text) for block, text in zip(changes, words, strict=False)]
    return plan_render("a cat", frames=frames, seed=3, overrides=settings, prompt_at=at)


GUIDED = ("sampling.guidance_mode=sequential", "sampling.guidance=3")


@cache
def render(*more, **settings):
    return render_latents(make_plan(*more, **settings))


@pytest.mark.parametrize(
    ("more", "counts"), [((), (2, 3)), (GUIDED, ()), (("model.dtype=bfloat16",), (3,))], ids=str
)
def test_keys_made_again_have_the_same_bits_on_any_number_of_stages(more, counts):
    expected = render(*more)
    for num_stages in counts:
        assert torch.equal(render(*more, num_stages=num_stages), expected), num_stages
    threads = Generator(make_plan(*more, num_stages=3), open_backend=ThreadBackend)
    assert torch.equal(threads.latents(), expected)


def test_keys_made_again_are_others():
    assert not torch.equal(render(policy="causal"), render())


def test_without_a_new_prompt_nothing_is_different():
    assert torch.equal(render(changes=()), render(policy="causal", changes=()))


def test_blocks_before_the_change_are_not_touched():
    before, after = render(changes=()), render(changes=(3,))
    assert torch.equal(before[:, :, :9], after[:, :, :9])
    assert not torch.equal(before[:, :, 9:12], after[:, :, 9:12])


@pytest.mark.parametrize("open_backend", [None, ThreadBackend], ids=["local", "threads"])
@pytest.mark.parametrize("num_stages", [1, 3])
def test_a_prompt_said_live_is_the_planned_one_from_the_block_it_begins_with(
    open_backend, num_stages
):
    more = {} if open_backend is None else {"open_backend": open_backend}
    generator = Generator(make_plan(num_stages=num_stages, changes=()), **more)
    blocks = generator.blocks()
    latents = [next(blocks).latents_BCTHW, next(blocks).latents_BCTHW]
    generator.set_prompt("a dog")
    latents += [block.latents_BCTHW for block in blocks]
    ours = torch.cat(latents, dim=2)
    first = (2,) if open_backend is None else (2, 3, 4)
    assert any(torch.equal(ours, render(changes=(block,))) for block in first)


def test_an_endless_video_takes_prompts_live_and_holds_no_more_for_it():
    generator = Generator(make_plan(frames=0, changes=()))
    blocks = generator.blocks()  # in this thread, so that what is held is seen between two blocks
    held = []
    for number in range(16):
        next(blocks)
        if number % 4 == 0:
            generator.set_prompt(f"a dog {number}")
        chain = generator._chain
        held.append((chain._stages[0].cache_bytes(), len(chain._windows._held)))
    blocks.close()
    assert set(held[8:]) <= set(held[:8])


def test_a_task_that_makes_keys_again_goes_over_the_wire_whole():
    tasks = list(make_plan().schedule.tasks())
    again = [task for task in tasks if task.text_of is not None]
    assert again
    assert pickle.loads(pickle.dumps(again)) == again
