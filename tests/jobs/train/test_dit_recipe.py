"""The DiT's recipe: windows of the world's latents, and a loss that training lowers."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file
from tiny_shapes import DIT, MIX, VAE, dit_recipe, random_clips

from longreel.jobs.train.export import save_transformer, save_vae
from longreel.jobs.train.latents import encode_clips, load_or_encode
from longreel.jobs.train.vae_whole import encode_whole
from longreel.jobs.world.captions import caption
from longreel.jobs.world.draw import draw
from longreel.jobs.world.scene import random_scene
from longreel.models.checkpoint import check_transformer, locate
from longreel.models.text_encoder import check_encoder, load_tokenizer
from longreel.models.vae import StreamingEncoder
from longreel.models.vae_build import random_vae
from longreel.models.vae_load import check_vae, load_vae


@pytest.fixture(scope="module")
def clips():
    return random_clips(8, 7)


@pytest.fixture
def recipe(clips, vae, tmp_path):
    vae.save_pretrained(tmp_path / "vae")
    return dit_recipe(clips, vae, tmp_path / "vae")


def test_a_batch_depends_on_seed_step_and_rank_alone(recipe, clips, vae):
    other = dit_recipe(clips, vae, None)
    first, again, rank = recipe.batch(3, 0, 2), other.batch(3, 0, 2), recipe.batch(3, 1, 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["sigma_BT"].ravel()[:2], rank["sigma_BT"].ravel()[:2])


def test_windows_begin_their_video_all_or_none(recipe):
    seen = set()
    for step in range(60):
        starts_B = recipe.batch(step, 0, 1)["starts_B"]
        assert (starts_B == 0).all() or (starts_B > 0).all()
        seen.add(bool(starts_B[0]))
    assert seen == {False, True}


def test_windows_that_begin_their_video_begin_their_scene_too(recipe, clips):
    assert set(clips.openings) == {0, 1, 2, 4, 5, 6}  # of 8
    for step in range(60):
        batch = recipe.batch(step, 0, 1)
        if not batch["starts_B"][0]:
            assert set(batch["numbers_B"].tolist()) <= set(clips.openings.tolist())


def test_three_clips_of_four_begin_their_scene(vae):
    seeds = [4, 5, 6, 7]
    made = [encode_clips(vae, [seed], 2) for seed in seeds]
    for seed, z_NCTHW in zip(seeds, made, strict=True):
        frames_THWC = draw(random_scene(seed), 0, 5)
        pixels = torch.from_numpy(frames_THWC).movedim(-1, 0)[None].float() / 127.5 - 1
        mean, std = (
            torch.tensor(each).view(1, -1, 1, 1, 1)
            for each in (vae.config.latents_mean, vae.config.latents_std)
        )
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            first = ((encode_whole(vae, pixels).float() - mean) / std).bfloat16()
        assert torch.equal(first, z_NCTHW) == (seed != 7)


def test_short_windows_are_drawn_more_often(recipe):
    shortest, longest = 2, 6
    recipe._mix = replace(recipe._mix, shortest=shortest, longest=longest, grow=0)
    lengths = [recipe.batch(step, 0, 1)["sigma_BT"].shape[1] for step in range(400)]
    assert set(lengths) == set(range(shortest, longest + 1))
    assert lengths.count(shortest) > 1.5 * lengths.count(longest)


def test_windows_are_cut_from_their_clips(clips):
    numbers_B, starts_B = torch.tensor([5, 0, 5]), torch.tensor([2, 0, 4])
    windows_BCTHW = clips.windows(numbers_B, starts_B, 3)
    for window_CTHW, number, start in zip(windows_BCTHW, numbers_B, starts_B, strict=True):
        expected = clips.clips_NCTHW[number, :, start : start + 3].float()
        assert torch.equal(window_CTHW, expected)


def test_prompts_are_captions_of_their_scenes_or_nothing(recipe, clips):
    batch = recipe.batch(0, 0, 1)
    words = [
        recipe.text.tokenizer.decode(ids_S, skip_special_tokens=True) for ids_S in batch["ids_BS"]
    ]
    for number, prompt in zip(batch["numbers_B"], words, strict=True):
        scene = random_scene(clips.seeds[number])
        captions = (caption(scene, int(number) * 6 + k) for k in range(6))
        known = [
            recipe.text.tokenizer.decode(recipe.text.tokens([one])[0][0], skip_special_tokens=True)
            for one in captions
        ]
        assert prompt in ["", *known]


def test_a_first_latent_in_noise_is_learnt_as_the_video_s_first_alone(recipe):
    for step in range(100):
        batch = recipe.batch(step, 0, 1)
        if batch["starts_B"][0]:
            learnt = batch["learnt_BT"][:, 0] > 0
            assert (batch["sigma_BT"][:, 0][learnt] < 0.5).all()


def test_before_training_the_velocity_is_zero_and_the_loss_that_of_noise(recipe, clips):
    for step in range(5):
        batch = recipe.batch(step, 0, 1)
        learnt_BT = batch["learnt_BT"]
        clean_BCTHW = clips.windows(batch["numbers_B"], batch["starts_B"], learnt_BT.shape[1])
        torch.manual_seed(step)
        loss, _ = recipe.model(**batch)
        torch.manual_seed(step)
        off_BT = (torch.randn_like(clean_BCTHW) - clean_BCTHW).square().mean(dim=(1, 3, 4))
        torch.testing.assert_close(loss, (off_BT * learnt_BT).sum() / learnt_BT.sum())


def test_steps_lower_the_loss_of_their_batch(recipe):
    batch = recipe.batch(0, 0, 1)
    optimizer = torch.optim.AdamW(recipe.model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        torch.manual_seed(0)
        loss, _ = recipe.model(**batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_what_is_exported_is_diffusers_transformer_and_ours(recipe, tmp_path):
    for parameter in recipe.dit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path / "transformer"
    save_transformer(recipe.dit, folder, torch.float32)
    check_transformer(str(tmp_path), "transformer", DIT)
    theirs = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(folder)).eval()
    theirs.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    latents, text = torch.randn(1, 4, 3, 4, 4), torch.randn(1, 48, 16)
    told = torch.tensor([500.0])
    with torch.no_grad():
        expected = theirs(latents, told, text, return_dict=False)[0]
        state = recipe.dit.embed(latents, told[None], text)
        ours = recipe.dit.head(recipe.dit.run_layers(state, range(2)))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("place", ["vae", "."])  # the VAE's own folder, or a model's that has it
def test_an_export_is_a_whole_checkpoint(clips, vae, tmp_path, place):
    vae.save_pretrained(tmp_path / "vae")
    dit_recipe(clips, vae, tmp_path / place).export(tmp_path / "model")
    check_transformer(str(tmp_path / "model"), "transformer", DIT)
    check_vae(tmp_path / "model", VAE)
    theirs = AutoencoderKLWan.from_pretrained(tmp_path / "model" / "vae").state_dict()
    assert all(torch.equal(theirs[name], t.half().float()) for name, t in vae.state_dict().items())
    check_encoder(locate(str(tmp_path / "model"), "text_encoder"), DIT.text_dim)
    load_tokenizer(locate(str(tmp_path / "model"), "tokenizer"))


def test_clips_are_made_once_and_equal_what_the_encoder_makes(vae, tmp_path, monkeypatch):
    made = encode_clips(vae, range(3), 2)
    assert made.shape == (3, 4, 2, 12, 12)
    kept = load_or_encode(tmp_path, vae, 3, 2, workers=2)
    monkeypatch.setattr(StreamingEncoder, "encode", None)  # a second time, nothing is encoded
    again = load_or_encode(tmp_path, vae, 3, 2)
    for clips in (kept, again):
        assert torch.equal(clips.clips_NCTHW, made)


def test_kept_clips_that_are_damaged_are_named_with_the_way_out(vae, tmp_path):
    made = load_or_encode(tmp_path, vae, 2, 2).clips_NCTHW
    (shard,) = tmp_path.iterdir()
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"^{shard} is damaged \(.*; remove it, and"):
        load_or_encode(tmp_path, vae, 2, 2)
    shard.unlink()
    assert torch.equal(load_or_encode(tmp_path, vae, 2, 2).clips_NCTHW, made)


def test_clips_of_one_vae_are_not_taken_for_those_of_another(vae, tmp_path):
    first = load_or_encode(tmp_path, vae, 2, 2).clips_NCTHW
    other = random_vae(VAE, seed=1)
    assert torch.equal(
        load_or_encode(tmp_path, other, 2, 2).clips_NCTHW, encode_clips(other, (0, 1), 2)
    )
    # as a DiT's checkpoint holds it, with the decoder taught on
    vae.save_pretrained(tmp_path / "vae")
    save_vae(tmp_path / "vae", VAE, tmp_path / "half")
    copied = load_vae(tmp_path / "half", VAE, device="cpu", dtype=torch.float32)
    torch.nn.init.zeros_(copied.decoder.conv_in.weight)
    num_shards = len([*tmp_path.glob("scenes-*")])
    assert torch.equal(load_or_encode(tmp_path, copied, 2, 2).clips_NCTHW, first)
    assert len([*tmp_path.glob("scenes-*")]) == num_shards == 2


def test_a_sheet_shows_the_held_out_prompts(recipe):
    sheet = recipe.sheet()
    assert sheet.dtype.name == "uint8"
    assert sheet.ndim == 3


def test_windows_grow_from_the_shortest_to_the_longest(clips, vae):
    recipe = dit_recipe(clips, vae, None, grow=100)

    def lengths(steps):
        return {recipe.batch(step, 0, 1)["sigma_BT"].shape[1] for step in steps}

    assert lengths(range(40)) == {MIX.shortest}
    assert max(lengths(range(60, 80))) < MIX.longest
    assert lengths(range(100, 160)) == set(range(MIX.shortest, MIX.longest + 1))
