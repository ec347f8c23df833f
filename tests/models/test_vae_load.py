"""Every layout a VAE is published in gives the same module; what does not fit is named."""

import json
from pathlib import Path

import pytest
import tiny_vae
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import save_file

from longreel.models.arch import ARCHS, VaeArch
from longreel.models.vae_build import build_vae, random_vae, vae_config
from longreel.models.vae_load import load_vae
from longreel.models.vae_names import diffusers_name

KINDS = sorted(tiny_vae.ARCHS)
PUBLISHED = {"2.1": ARCHS["wan2.1-t2v-14b"].vae, "2.2": ARCHS["wan2.2-ti2v-5b"].vae}


def load(path: Path, arch: VaeArch) -> AutoencoderKLWan:
    return load_vae(path, arch, device="cpu", dtype=torch.float32)


def assert_same(vae: AutoencoderKLWan, kind: str) -> None:
    expected = tiny_vae.VAES[kind].state_dict()
    assert list(vae.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in vae.state_dict().items())
    assert not vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def original_file(kind: str, path: Path) -> Path:
    arch = tiny_vae.ARCHS[kind]
    tensors = {
        tiny_vae.original_name(name, arch.num_res_blocks, arch.residual): tensor
        for name, tensor in tiny_vae.VAES[kind].state_dict().items()
    }
    torch.save(tensors, path) if path.suffix == ".pth" else save_file(tensors, path)
    return path


def diffusers_folder(kind: str, path: Path) -> Path:
    tiny_vae.VAES[kind].save_pretrained(path / "vae")
    return path


@pytest.mark.parametrize(
    ("version", "num_tensors", "num_parameters"),
    # of the published files, whose sizes in bytes these counts give: 507.6 MB and 1.409 GB
    [("2.1", 194, 126_892_531), ("2.2", 196, 704_688_668)],
)
def test_a_published_arch_has_as_many_tensors_and_weights_as_its_file(
    version, num_tensors, num_parameters
):
    with torch.device("meta"):
        vae = build_vae(PUBLISHED[version])
    assert len(vae.state_dict()) == num_tensors
    assert sum(parameter.numel() for parameter in vae.parameters()) == num_parameters


def test_the_vae_of_wan_2_1_is_what_diffusers_builds_by_default():
    with torch.device("meta"):
        config = dict(AutoencoderKLWan().config)
    ours = vae_config(PUBLISHED["2.1"])
    assert ours == {key: config[key] for key in ours}


def test_the_statistics_of_wan_2_2_belong_to_48_channels():
    config = vae_config(PUBLISHED["2.2"])
    mean, std = config["latents_mean"], config["latents_std"]
    assert len(mean) == len(std) == 48
    # the ends of the published config.json
    assert (mean[0], mean[47], std[0], std[47]) == (-0.2289, -0.0667, 0.4765, 0.7744)
    assert config["in_channels"] == config["out_channels"] == 12


def test_names_of_wan_2_1_are_those_of_diffusers_converter():
    arch = PUBLISHED["2.1"]
    with torch.device("meta"):
        names = build_vae(arch).state_dict()
    originals = {tiny_vae.original_name(name, 2, residual=False): name for name in names}
    converted = convert_wan_vae_to_diffusers({name: name for name in originals})
    assert converted == {new: old for old, new in originals.items()}
    for original, name in originals.items():
        assert diffusers_name(original, arch) == name


@pytest.mark.parametrize(
    ("original", "name"),
    # spelt out as they stand in Wan2.2_VAE.pth
    [
        ("conv1.weight", "quant_conv.weight"),
        ("encoder.conv1.bias", "encoder.conv_in.bias"),
        (
            "encoder.downsamples.1.downsamples.0.shortcut.weight",
            "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
        ),
        (
            "encoder.downsamples.2.downsamples.2.time_conv.weight",
            "encoder.down_blocks.2.downsampler.time_conv.weight",
        ),
        (
            "encoder.downsamples.3.downsamples.1.residual.6.weight",
            "encoder.down_blocks.3.resnets.1.conv2.weight",
        ),
        (
            "decoder.upsamples.0.upsamples.0.residual.2.weight",
            "decoder.up_blocks.0.resnets.0.conv1.weight",
        ),
        (
            "decoder.upsamples.2.upsamples.3.resample.1.weight",
            "decoder.up_blocks.2.upsampler.resample.1.weight",
        ),
        ("decoder.middle.1.to_qkv.bias", "decoder.mid_block.attentions.0.to_qkv.bias"),
        ("decoder.middle.2.residual.3.gamma", "decoder.mid_block.resnets.1.norm2.gamma"),
        ("decoder.head.2.weight", "decoder.conv_out.weight"),
    ],
)
def test_names_of_wan_2_2_are_read_as_they_are_published(original, name):
    assert diffusers_name(original, PUBLISHED["2.2"]) == name


@pytest.mark.parametrize("version", PUBLISHED)
def test_every_tensor_of_a_published_vae_has_its_own_original_name(version):
    arch = PUBLISHED[version]
    with torch.device("meta"):
        names = list(build_vae(arch).state_dict())
    originals = [tiny_vae.original_name(name, 2, arch.residual) for name in names]
    assert len(set(originals)) == len(names)
    assert [diffusers_name(original, arch) for original in originals] == names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["Wan2.1_VAE.pth", "wan_vae.safetensors"])
def test_an_original_file_gives_the_module_it_was_made_from(kind, file, tmp_path):
    path = original_file(kind, tmp_path / file)
    assert_same(load(path, tiny_vae.ARCHS[kind]), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_diffusers_folder_gives_the_module_it_was_made_from(kind, tmp_path):
    folder = diffusers_folder(kind, tmp_path)
    assert_same(load(folder, tiny_vae.ARCHS[kind]), kind)
    assert_same(load(folder / "vae", tiny_vae.ARCHS[kind]), kind)


def test_weights_are_loaded_in_the_dtype_asked_for(tmp_path):
    folder = diffusers_folder("plain", tmp_path)
    vae = load_vae(folder, tiny_vae.PLAIN, device="cpu", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.bfloat16}


def test_the_statistics_of_a_folder_are_its_own_and_older_configs_lack_fields(tmp_path):
    config_file = diffusers_folder("plain", tmp_path) / "vae/config.json"
    config = json.loads(config_file.read_text())
    config["latents_mean"][0] = 7.0
    for field in ("is_residual", "patch_size", "scale_factor_spatial", "decoder_base_dim"):
        del config[field]
    config_file.write_text(json.dumps({**config, "clip_output": False}))

    vae = load(tmp_path, tiny_vae.PLAIN)

    assert vae.config.latents_mean[0] == 7.0
    assert_same(vae, "plain")


def test_a_checkpoint_of_another_vae_is_refused_by_its_config(tmp_path):
    folder = diffusers_folder("residual", tmp_path)
    with pytest.raises(ValueError, match=r"z_dim=48 instead of 16.*set model\.arch"):
        load(folder, tiny_vae.PLAIN)


def test_an_original_file_of_another_vae_is_refused_by_its_tensors(tmp_path):
    path = original_file("residual", tmp_path / "Wan2.2_VAE.pth")
    with pytest.raises(ValueError, match=r"Wan2\.2_VAE\.pth does not fit .*missing.*unknown"):
        load(path, tiny_vae.PLAIN)


def test_a_truncated_a_lost_file_and_a_folder_without_weights_are_named(tmp_path):
    path = original_file("plain", tmp_path / "wan_vae.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"wan_vae\.safetensors is truncated"):
        load(path, tiny_vae.PLAIN)
    path.unlink()
    with pytest.raises(ValueError, match=r"wan_vae\.safetensors: no such file"):
        load(path, tiny_vae.PLAIN)
    with pytest.raises(ValueError, match="holds no weights"):
        load(tmp_path, tiny_vae.PLAIN)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is corrupt"),
        ("[1]", "is corrupt"),
        (
            '{"base_dim": 8, "num_res_blocks": 1, "latents_std": [1.0]}',
            "latents_std has 1 values for latents of 16 channels",
        ),
    ],
)
def test_a_broken_config_is_named(text, message, tmp_path):
    (diffusers_folder("plain", tmp_path) / "vae/config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json:? {message}"):
        load(tmp_path, tiny_vae.PLAIN)


def test_random_weights_depend_on_the_seed_alone_and_leave_the_global_generator():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = random_vae(tiny_vae.PLAIN, seed=3)
    assert torch.equal(torch.get_rng_state(), before)

    torch.manual_seed(2)
    assert_same(random_vae(tiny_vae.PLAIN, seed=3), "plain")
    other = random_vae(tiny_vae.PLAIN, seed=4)
    assert not torch.equal(other.decoder.conv_in.weight, first.decoder.conv_in.weight)
