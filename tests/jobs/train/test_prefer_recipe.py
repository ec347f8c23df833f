"""What a model makes itself, judged by the world, and the loss that prefers what is right."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_shapes import ARCH, MIX, dit_recipe

from longreel.configs.train_load import load_training
from longreel.configs.train_small import PreferTraining
from longreel.jobs.train import attempts as made
from longreel.jobs.train.attempts import Attempts, Sampler, load_or_make, verdict
from longreel.jobs.train.prefer_recipe import PreferRecipe
from longreel.jobs.train.recipes import prepare_recipe
from longreel.jobs.world.draw import draw
from longreel.jobs.world.scene import random_scene

PREFER = PreferTraining(prompts=4, attempts=2, lengths=(2, 3), steps=2, latents=12)


@pytest.fixture
def plain(clips, vae, tmp_path):
    vae.save_pretrained(tmp_path / "vae")
    recipe = dit_recipe(clips, vae, tmp_path / "vae")
    torch.manual_seed(0)
    for parameter in recipe.dit.parameters():  # a model that has learnt something
        torch.nn.init.normal_(parameter, std=0.1)
    return recipe


def attempts_at(seed, latents, verdicts):
    generator = torch.Generator().manual_seed(seed)
    videos = torch.randn(len(verdicts), 4, latents, 4, 4, generator=generator).bfloat16()
    return Attempts(seed, videos, torch.tensor(verdicts, dtype=torch.int8))


@pytest.fixture
def recipe(plain):
    some = [attempts_at(1, 2, [1, -1]), attempts_at(5, 3, [-1, 0]), attempts_at(6, 2, [1, 1])]
    return PreferRecipe(plain, some, seed=0, mix=PREFER, shift=6.0)


def test_the_world_is_right_and_other_scenes_are_wrong():
    scene = random_scene(3, "held-out")
    assert verdict(draw(scene, 0, 33), scene) == 1
    assert verdict(draw(random_scene(4, "held-out"), 0, 33), scene) == -1


def test_a_thing_that_turns_into_another_is_wrong_and_one_that_flickers_is_neither():
    scene = next(s for s in map(random_scene, range(100)) if len(s.things) == 1 and not s.pan)
    frames = draw(scene, 0, 33)
    thing = scene.things[0]
    other = replace(thing, shape="star" if thing.shape != "star" else "circle")
    changed = draw(replace(scene, things=(other,)), 0, 33)
    few, many = frames.copy(), frames.copy()
    few[28:33] = changed[28:33]
    many[18:33] = changed[18:33]
    assert [verdict(clip, scene) for clip in (frames, few, many)] == [1, 0, -1]


def test_attempts_are_made_once_and_follow_from_their_seed(plain, vae, tmp_path, monkeypatch):
    plain.export(tmp_path / "model")

    def make(folder, seeds, workers=0):
        sampler = Sampler(tmp_path / "model", ARCH, PREFER, 6.0)
        return load_or_make(folder, seeds, lambda s: sampler(s, (4, 12, 12)), vae, workers)

    first = make(tmp_path / "a", [1, 2, 5], workers=2)
    alone = make(tmp_path / "b", [5])
    monkeypatch.setattr(made, "_attempt", None)  # a second time, nothing is made
    again = make(tmp_path / "a", [1, 2, 5])

    assert [one.seed for one in first] == [1, 2, 5]
    assert {one.videos_KCTHW.shape[2] for one in first} <= {2, 3}
    for one, other in zip((*first, first[2]), (*again, alone[0]), strict=True):
        assert torch.equal(one.videos_KCTHW, other.videos_KCTHW)
        assert torch.equal(one.verdicts_K, other.verdicts_K)
    assert not torch.equal(first[0].videos_KCTHW[0], first[0].videos_KCTHW[1])


def test_attempts_of_another_model_or_made_otherwise_are_others(plain, tmp_path):
    def key(folder, **mix):
        return Sampler(tmp_path / folder, ARCH, replace(PREFER, **mix), 6.0).key

    plain.export(tmp_path / "model")
    plain.export(tmp_path / "same")
    with torch.no_grad():
        next(plain.text.parameters()).add_(1)
    plain.export(tmp_path / "other")

    assert key("model") == key("same") == key("model", beta=1.0)
    others = [key("other"), *(key("model", **mix) for mix in ({"steps": 3}, {"lengths": (2,)}))]
    assert len({key("model"), *others}) == 4


def test_pairs_are_right_and_wrong_videos_of_one_prompt(recipe, clips):
    one, five = attempts_at(1, 2, [1, -1]), attempts_at(5, 3, [-1, 0])
    seen = set()
    for step in range(40):
        batch = recipe.batch(step, 0, 1)
        latents = batch["right_PCTHW"].shape[2]
        assert len(batch["right_PCTHW"]) == 12 // (2 * latents)
        for right, wrong in zip(batch["right_PCTHW"], batch["wrong_PCTHW"], strict=True):
            own, number = (one, 1) if latents == 2 else (five, 5)
            assert torch.equal(wrong, own.videos_KCTHW[own.wrong[0]])
            of_world = torch.equal(right, clips.clips_NCTHW[number, :, :latents])
            assert of_world or (number == 1 and torch.equal(right, one.videos_KCTHW[0]))
            seen.add((number, of_world))
    assert seen == {(1, True), (1, False), (5, True)}


def test_a_batch_depends_on_seed_step_and_rank_alone(recipe):
    first, again, rank = recipe.batch(3, 0, 2), recipe.batch(3, 0, 2), recipe.batch(3, 1, 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pair_sigma"].ravel()[:2], rank["pair_sigma"].ravel()[:2])


def test_at_first_a_pair_costs_what_a_coin_does(recipe):
    batch = recipe.batch(0, 0, 1)
    torch.manual_seed(0)
    loss, figures = recipe.model(**batch)
    torch.manual_seed(0)
    ordinary = {name: x for name, x in batch.items() if name in recipe._plain.batch(0, 0, 1)}
    plain, _ = recipe.model.plain(**ordinary)
    paired = loss - plain
    torch.testing.assert_close(paired.item(), 2 * math.log(2) / PREFER.beta, rtol=1e-3, atol=1e-6)
    assert figures["plain"] == plain.item()


def test_steps_make_the_right_one_preferred_and_leave_reference_and_words(recipe):
    batch = recipe.batch(1, 0, 1)
    kept = [*recipe.model.reference.parameters(), *recipe.model.plain.text.parameters()]
    before = [p.clone() for p in kept]
    learnt = [p for p in recipe.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=3e-3)
    for _ in range(25):
        torch.manual_seed(0)
        loss, figures = recipe.model(**batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert figures["preferred"] == 1.0
    assert all(torch.equal(*pair) for pair in zip(before, kept, strict=True))


def test_attempts_that_are_all_right_are_refused():
    with pytest.raises(ValueError, match=r"prefer\.prompts=4.*none of .* is wrong"):
        made.check_some_wrong([attempts_at(1, 2, [1, 1])], PREFER)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["dit.start="], r"^dit\.start is empty, and recipe=prefer learns from what a model makes"),
        (["dit.start={tmp}/none"], r"^dit\.start=.*/none is no folder"),
        (["prefer.lengths=[9,31]"], r"^prefer\.lengths holds 31.*dit\.clip_latents=25"),
        (["prefer.lengths=[]"], r"^prefer\.lengths=\[\] is no length"),
    ],
)
def test_what_is_missing_is_named(overrides, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        prepare_recipe(
            load_training(
                "shapes-prefer",
                ["dit.compiled=false", *(override.format(tmp=tmp_path) for override in overrides)],
            )
        )


def test_the_recipe_is_trained_from_a_folder_to_a_model(plain, vae, clips, tmp_path, monkeypatch):
    """The whole way, by the files: attempts, steps, export."""
    from longreel.jobs.train.launch import train
    from longreel.models.arch import ARCHS

    monkeypatch.setitem(ARCHS, "small", ARCH)
    plain.export(tmp_path / "model")
    monkeypatch.setattr(made, "verdict", lambda frames, scene: -1)
    config = load_training(
        "shapes-prefer",
        [
            "dit.arch=small",
            f"dit.start={tmp_path}/model",
            f"dit.vae={tmp_path}/vae",
            "dit.clips=4",
            "dit.clip_latents=4",
            f"dit.shortest={MIX.shortest}",
            "dit.longest=3",
            "dit.latents=6",
            f"dit.cache={tmp_path}/clips",
            "dit.compiled=false",
            f"prefer.cache={tmp_path}/attempts",
            "prefer.prompts=3",
            "prefer.attempts=2",
            "prefer.steps=2",
            "prefer.lengths=[2]",
            "prefer.latents=8",
            "steps=2",
            f"run.output={tmp_path}/run",
        ],
    )
    train(config)
    kept = load_file(
        tmp_path / "run" / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    )
    began = load_file(tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert kept.keys() == began.keys()
    assert any(not torch.equal(kept[name], began[name]) for name in kept)
