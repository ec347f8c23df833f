"""Finding the parts of a checkpoint, and refusing one that is absent or of another model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from layouts import save_state, write_diffusers_transformer, write_original_transformer
from tiny_wan import FLF2V, I2V, SKYREELS, T2V, diffusers_model

from longreel.models.arch import ARCHS, WanArch
from longreel.models.checkpoint import check_transformer, locate, open_transformer
from longreel.models.checkpoint_arch import check_arch, read_arch
from longreel.models.wan import WanDiT
from longreel.models.weights import Weights, load_module

PARTS = (
    "transformer",
    "transformer_2",
    "vae",
    "text_encoder",
    "tokenizer",
    "image_encoder",
    "image_processor",
)
T5 = "models_t5_umt5-xxl-enc-bf16.pth"
CLIP = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
LAYOUTS = {
    "diffusers": {part: part for part in PARTS},
    "wan2.1": {
        "transformer": "",
        "vae": "Wan2.1_VAE.pth",
        "text_encoder": T5,
        "tokenizer": "google/umt5-xxl",
        "image_encoder": CLIP,
        "image_processor": CLIP,
    },
    "wan2.2-a14b": {
        "transformer": "high_noise_model",
        "transformer_2": "low_noise_model",
        "vae": "Wan2.1_VAE.pth",
        "text_encoder": T5,
        "tokenizer": "google/umt5-xxl",
    },
    "wan2.2-5b": {
        "transformer": "",
        "vae": "Wan2.2_VAE.pth",
        "text_encoder": T5,
        "tokenizer": "google/umt5-xxl",
    },
}


def lay_out(root: Path, places: dict[str, str]) -> None:
    for place in places.values():
        path = root / place
        if path.suffix == ".pth":
            path.touch()
        else:
            path.mkdir(parents=True, exist_ok=True)
            (path / "diffusion_pytorch_model-00001-of-00001.safetensors").touch()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_part_is_found_where_its_layout_has_it(tmp_path: Path, layout: str) -> None:
    places = LAYOUTS[layout]
    lay_out(tmp_path, places)
    for part in PARTS:
        if part in places:
            assert locate(str(tmp_path), part) == tmp_path / places[part]
        else:
            with pytest.raises(ValueError, match=rf"has no {part} in .*complete the download"):
                locate(str(tmp_path), part)


def test_the_transformer_may_be_a_folder_or_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "Wan2.1_VAE.pth").touch()
    with pytest.raises(ValueError, match="has no transformer"):
        locate(str(tmp_path), "transformer")
    file = tmp_path / "self_forcing_dmd.pt"
    file.touch()
    assert locate(str(file), "transformer") == file
    assert locate(str(tmp_path), "transformer") == file
    with pytest.raises(ValueError, match=r"one file, which holds no vae; set model\.transformer"):
        locate(str(file), "vae")
    with pytest.raises(ValueError, match=r"one file, which holds one expert.*folder that has both"):
        locate(str(file), "transformer_2", "model.transformer")
    (tmp_path / "sky").mkdir()
    (tmp_path / "sky" / "model-00001-of-00002.safetensors").touch()
    assert locate(str(tmp_path / "sky"), "transformer") == tmp_path / "sky"


def test_a_reference_that_is_nothing_is_refused_with_its_field() -> None:
    with pytest.raises(ValueError, match=r"^model\.checkpoint=/nowhere/at/all is no file or fold"):
        locate("/nowhere/at/all", "vae")
    with pytest.raises(ValueError, match=r"^model\.transformer=x\.pt is no file .*correct it"):
        locate("x.pt", "transformer", field="model.transformer")


def test_a_hub_id_fetches_one_part_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import filter_repo_objects

    published = [
        *("model_index.json", "transformer/config.json", "transformer/a.safetensors"),
        *("transformer_2/a.safetensors", "vae/a.safetensors", "text_encoder/a.safetensors"),
        *("tokenizer/spiece.model", "checkpoints/dmd.pt", "checkpoints/other.pt"),
    ]

    def snapshot_download(repo: str, *, allow_patterns: list[str]) -> str:
        assert repo == "org/name-1.3B"
        for name in filter_repo_objects(published, allow_patterns=allow_patterns):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        return str(tmp_path)

    def fetched() -> set[str]:
        return {str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*") if f.is_file()}

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert locate("org/name-1.3B", "vae") == tmp_path / "vae"
    assert fetched() == {"vae/a.safetensors"}
    assert locate("org/name-1.3B", "transformer") == tmp_path / "transformer"
    assert fetched() == {
        *("vae/a.safetensors", "transformer/config.json", "transformer/a.safetensors")
    }
    one = locate("org/name-1.3B:checkpoints/dmd.pt", "transformer")
    assert one == tmp_path / "checkpoints" / "dmd.pt"
    assert not (tmp_path / "checkpoints" / "other.pt").exists()
    with pytest.raises(ValueError, match=r"org/name-1\.3B has no image_encoder that we know"):
        locate("org/name-1.3B", "image_encoder")
    with pytest.raises(ValueError, match=r":checkpoints/no\.pt has no transformer that we know"):
        locate("org/name-1.3B:checkpoints/no.pt", "transformer")


def test_offline_the_message_says_how_to_get_the_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the hub's client itself answers, and has been told to be offline before it was imported
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"^model\.checkpoint=org/name: its vae is not in the lo"
    ) as e:
        locate("org/name", "vae")
    assert 'run `hf download org/name --include "vae/*"' in str(e.value)
    assert "or set model.checkpoint to a local folder" in str(e.value)


@pytest.mark.parametrize(
    ("arch", "skyreels"), [(T2V, False), (I2V, False), (FLF2V, False), (SKYREELS, True)]
)
def test_the_config_of_either_layout_gives_the_architecture(
    tmp_path: Path, arch: WanArch, skyreels: bool
) -> None:
    model = diffusers_model(arch, skyreels=skyreels)
    write_diffusers_transformer(tmp_path / "diffusers", model)
    write_original_transformer(tmp_path / "original", model)
    assert read_arch(tmp_path / "diffusers") == arch
    assert read_arch(tmp_path / "original") == arch


def test_an_image_model_without_clip_tokens_is_told_by_its_tensors(tmp_path: Path) -> None:
    arch = replace(I2V, image_dim=None)  # Wan 2.2 I2V: more channels, no tokens
    write_original_transformer(tmp_path, diffusers_model(arch))
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "i2v"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_arch(tmp_path) == arch


def test_a_config_that_is_no_such_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json beside its weights"):
        read_arch(tmp_path)
    for content in (
        *(b"{", b'{"dim": 8, "num_heads": 0}', b'{"num_attention_heads": 2}', b"[]", b"{}"),
        b"\xff\xfe",  # no UTF-8
    ):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"config\.json is no config of a Wan-shaped"):
            read_arch(tmp_path)


class Headers:
    """Stands for a file of a published size: shapes without tensors."""

    def __init__(self, arch: WanArch) -> None:
        self.path, self.field = Path("published.safetensors"), "model.checkpoint"
        with torch.device("meta"):
            # layers are alike: the first and last tell all
            self.shapes = {
                name: tuple(tensor.shape)
                for first in (0, arch.num_layers - 1)
                for name, tensor in WanDiT(arch, range(first, first + 1)).state_dict().items()
            }


def test_a_checkpoint_of_another_model_is_recognised_by_its_shapes() -> None:
    for name, arch in ARCHS.items():
        check_arch(arch.dit, Headers(arch.dit), name)  # type: ignore[arg-type]
    small = Headers(ARCHS["wan2.1-t2v-1.3b"].dit)
    with pytest.raises(ValueError, match="of another model") as caught:
        check_arch(ARCHS["wan2.1-t2v-14b"].dit, small, "wan2.1-t2v-14b")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "published.safetensors is a checkpoint of another model: model.arch=wan2.1-t2v-14b means "
        "dim 5120, 40 layers, ffn_dim 13824; the file has dim 1536, 30 layers, ffn_dim 8960: it "
        "looks like wan2.1-t2v-1.3b or self-forcing-1.3b; set model.arch to that, or "
        "model.checkpoint to weights of the model that is meant"
    )
    strange = Headers(replace(T2V, num_layers=2))
    with pytest.raises(ValueError, match=r"means 3 layers; the file has 2 .*fits no model that we"):
        check_arch(T2V, strange)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_a_checkpoint_is_checked_whole_without_reading_a_tensor(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = diffusers_model(T2V)
    if layout == "diffusers":
        write_diffusers_transformer(tmp_path / "transformer", model)
    else:
        write_original_transformer(tmp_path, model)

    def read(weights: Weights, name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(Weights, "read", read)
    weights = check_transformer(str(tmp_path), "transformer", T2V)
    assert weights.shapes.keys() == model.state_dict().keys()
    with pytest.raises(ValueError, match="means 4 layers; the file has 3 layers"):
        check_transformer(str(tmp_path), "transformer", replace(T2V, num_layers=4))
    heads = replace(T2V, num_heads=4, head_dim=10)
    with pytest.raises(ValueError, match=r"config\.json says num_heads=2, and model\.arch=x means"):
        check_transformer(str(tmp_path), "transformer", heads, "x")


def test_names_missing_or_unknown_are_found_by_the_check(tmp_path: Path) -> None:
    state = dict(diffusers_model(T2V).state_dict())
    del state["blocks.1.attn2.to_v.bias"]
    state["vace_blocks.0.proj_in.weight"] = torch.zeros(1)
    save_state(tmp_path / "dit.safetensors", state)
    with pytest.raises(ValueError, match="does not fit the model") as caught:
        check_transformer(str(tmp_path / "dit.safetensors"), "transformer", T2V)
    assert "1 missing (blocks.1.attn2.to_v.bias)" in str(caught.value)
    assert "1 unknown (vace_blocks.0.proj_in.weight)" in str(caught.value)
    save_state(tmp_path / "other.safetensors", {"decoder.conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"no Wan-shaped transformer .*it has decoder\.conv1"):
        check_transformer(str(tmp_path / "other.safetensors"), "transformer", T2V)


@pytest.mark.parametrize("arch", [T2V, FLF2V, SKYREELS], ids=["t2v", "flf2v", "skyreels"])
def test_slices_of_our_model_from_either_layout_are_the_whole_model(
    tmp_path: Path, arch: WanArch
) -> None:
    model = diffusers_model(arch, skyreels=arch.fps_embedding)
    write_diffusers_transformer(tmp_path / "transformer", model, shards=2)
    write_original_transformer(tmp_path / "dit.pth", model)
    for reference in (tmp_path, tmp_path / "dit.pth"):
        weights = open_transformer(locate(str(reference), "transformer"), arch)
        loaded = {}
        for i in range(arch.num_layers):
            with torch.device("meta"):
                part = WanDiT(
                    arch,
                    range(i, i + 1),
                    with_embed=i == 0,
                    with_head=i == arch.num_layers - 1,
                )
            load_module(part, weights, device="cpu", dtype=torch.float32)
            loaded |= part.state_dict()
        assert loaded.keys() == model.state_dict().keys()
        assert all(torch.equal(loaded[name], t) for name, t in model.state_dict().items())
