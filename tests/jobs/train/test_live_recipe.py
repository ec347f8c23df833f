"""The causal student's recipe: what it is shown, what it learns, and what it leaves."""

from dataclasses import replace

import pytest
import torch
from tiny_shapes import ARCH, dit_recipe, random_clips

from longreel.configs.train_small import LiveTraining
from longreel.jobs.train.live_recipe import LiveRecipe
from longreel.jobs.train.sample import velocity
from longreel.models.checkpoint import check_transformer

CHUNK = 2
LIVE = replace(ARCH, causal_latents=CHUNK)
FEW = LiveTraining(rows=3, chunks=3, guidance=2.0)


@pytest.fixture(scope="module")
def clips():
    return random_clips(6, 9)


@pytest.fixture(scope="module")
def teacher(clips, vae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    vae.save_pretrained(folder / "vae")
    recipe = dit_recipe(clips, vae, folder / "vae")
    for parameter in recipe.dit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    recipe.export(folder / "model")
    return folder / "model"


@pytest.fixture
def recipe(teacher, clips, vae):
    return LiveRecipe(LIVE, teacher, clips, seed=0, mix=FEW, vae=vae)


def test_a_batch_depends_on_seed_step_and_rank_alone(recipe, teacher, clips, vae):
    other = LiveRecipe(LIVE, teacher, clips, seed=0, mix=FEW, vae=vae)
    first, again = recipe.batch(5, 1, 2), other.batch(5, 1, 2)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_window_is_the_sink_and_a_run_of_the_same_clip(recipe, clips):
    lengths = set()
    for step in range(40):
        batch = recipe.batch(step, 0, 1)
        numbers_B, starts_B, length = (
            batch["numbers_B"],
            batch["starts_B"],
            batch["told_BT"].shape[1],
        )
        windows_BCTHW = recipe.model.windows(numbers_B, starts_B, length)
        for number, start, window_CTHW in zip(numbers_B, starts_B, windows_BCTHW, strict=True):
            clip_CTHW, run = clips.clips_NCTHW[number].float(), length - CHUNK
            assert CHUNK <= start <= 9 - run
            assert torch.equal(window_CTHW[:, :CHUNK], clip_CTHW[:, :CHUNK])
            assert torch.equal(window_CTHW[:, CHUNK:], clip_CTHW[:, start : start + run])
        lengths.add(length - CHUNK)
    assert lengths == {0, CHUNK, 2 * CHUNK}


def test_chunks_have_one_level_each_and_a_clean_past_bears_little_noise(recipe):
    for step in range(40):
        batch = recipe.batch(step, 0, 1)
        for sigma_T, told_T in zip(batch["sigma_BT"], batch["told_BT"], strict=True):
            by_chunk = told_T.view(-1, CHUNK)
            assert torch.equal(by_chunk[:, 0], by_chunk[:, 1])
            past = told_T == 0
            assert torch.equal(sigma_T[~past], told_T[~past])
            assert (sigma_T[past] <= FEW.past_noise).all()
            assert not past[-1]


def test_the_target_is_the_data_moved_along_what_the_prompt_changes_in_the_teacher(recipe):
    batch = recipe.batch(3, 0, 1)
    torch.manual_seed(0)
    loss, _ = recipe.model(**batch)
    told, numbers = batch["told_BT"], batch["numbers_B"]
    clean = recipe.model.windows(numbers, batch["starts_B"], told.shape[1])
    torch.manual_seed(0)
    noise = torch.randn_like(clean)
    texts = recipe.model.texts_NSD[numbers], recipe.model.empty_SD.expand(len(numbers), -1, -1)
    sigma = batch["sigma_BT"][:, None, :, None, None]
    noisy = (1 - sigma) * clean + sigma * noise
    wanted, empty = (velocity(recipe.model.teacher, noisy, told, text).float() for text in texts)
    target = noise - clean + wanted - empty  # guidance 2
    made = velocity(recipe.dit, noisy, told, texts[0], causal=CHUNK).float()
    learnt = (told > 0)[:, None, :, None, None].expand_as(made)
    torch.testing.assert_close(loss, (made - target)[learnt].square().mean(), rtol=1e-4, atol=1e-4)


def test_steps_lower_the_loss_and_leave_the_teacher_alone(recipe):
    batch = recipe.batch(0, 0, 1)
    before = [p.clone() for p in recipe.model.teacher.parameters()]
    optimizer = torch.optim.AdamW(recipe.dit.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        torch.manual_seed(0)
        loss, _ = recipe.model(**batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    after = recipe.model.teacher.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_chunk_of_the_roll_out_depends_on_its_past_alone(recipe):
    text = recipe._embed(["a red circle drifts to the left"])
    with torch.no_grad():
        short, long = recipe._roll_out(text, 2), recipe._roll_out(text, 3)
    torch.testing.assert_close(long[:, :, : 2 * CHUNK], short, rtol=0, atol=1e-5)


def test_the_export_is_a_checkpoint_with_the_teacher_s_other_parts(recipe, teacher, tmp_path):
    recipe.export(tmp_path)
    check_transformer(str(tmp_path), "transformer", ARCH.dit)
    for part in ("vae/config.json", "text_encoder/config.json", "tokenizer/tokenizer.json"):
        assert (tmp_path / part).read_bytes() == (teacher / part).read_bytes()
    assert recipe.sheet().dtype.name == "uint8"
