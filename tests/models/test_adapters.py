"""Adapters in every published spelling add what diffusers reads in them."""

import json

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file
from tiny_wan import I2V, T2V, diffusers_model

from longreel.models.lora import Adapted, Adapter, find_adapters
from longreel.models.names import original_module, rename_transformer
from longreel.models.wan_load import load_dit
from longreel.models.weights import Weights

RANK = 3
LAYER = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"]
LAYER += [f"attn2.{name.partition('.')[2]}" for name in LAYER] + ["ffn.net.0.proj", "ffn.net.2"]
OF_ALL = [f"blocks.{i}.{name}" for i in range(T2V.num_layers) for name in LAYER]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """A checkpoint's folder, and its tensors."""
    folder = tmp_path_factory.mktemp("transformer")
    model = diffusers_model(T2V)
    model.save_pretrained(folder)
    return folder, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def halves(state, modules, seed=0):
    """Down and up of every module."""
    g = torch.Generator().manual_seed(seed)
    for module in modules:
        out, inside = state[f"{module}.weight"].shape
        yield (
            module,
            torch.randn(RANK, inside, generator=g),
            torch.randn(out, RANK, generator=g),
        )


def spelt(spelling, state):
    """The tensors of an adapter's file."""
    tensors = {}
    for number, (module, down, up) in enumerate(halves(state, OF_ALL)):
        wan = original_module(module)
        if spelling == "diffusers":
            tensors |= {
                f"transformer.{module}.lora_A.weight": down,
                f"transformer.{module}.lora_B.weight": up,
            }
        elif spelling == "wan":
            tensors |= {
                f"diffusion_model.{wan}.lora_A.weight": down,
                f"diffusion_model.{wan}.lora_B.weight": up,
            }
        elif spelling == "wan, with alpha and biases":
            bias = torch.randn(len(up), generator=torch.Generator().manual_seed(number))
            tensors |= {
                f"diffusion_model.{wan}.lora_down.weight": down,
                f"diffusion_model.{wan}.lora_up.weight": up,
                f"diffusion_model.{wan}.alpha": torch.tensor(1.5),
                f"diffusion_model.{wan}.diff_b": bias,
            }
        else:
            flat = "lora_unet_" + wan.replace(".", "_")
            tensors |= {
                f"{flat}.lora_down.weight": down,
                f"{flat}.lora_up.weight": up,
                f"{flat}.alpha": torch.tensor(6.0),
            }
    return tensors


@pytest.mark.parametrize("spelling", ["diffusers", "wan", "wan, with alpha and biases", "kohya"])
def test_what_is_added_is_what_diffusers_reads(transformer, tmp_path, spelling):
    folder, state = transformer
    file = tmp_path / "adapter.safetensors"
    save_file(spelt(spelling, state), file)
    theirs = WanPipeline.lora_state_dict(load_file(file))
    model = load_dit(
        folder, T2V, device=CPU, dtype=torch.float32, adapters=[Adapter(path=file, scale=0.5)]
    )
    changed = 0
    for name, tensor in model.state_dict().items():
        module, _, leaf = name.rpartition(".")
        expected = state[name]
        if leaf == "weight" and f"transformer.{module}.lora_A.weight" in theirs:
            down, up = (theirs[f"transformer.{module}.lora_{x}.weight"] for x in "AB")
            expected = expected + 0.5 * (up @ down)
        if leaf == "bias" and f"transformer.{module}.lora_B.bias" in theirs:
            expected = expected + 0.5 * theirs[f"transformer.{module}.lora_B.bias"]
        changed += not torch.equal(tensor, state[name])
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-5)
    assert changed == len(OF_ALL) * (2 if "biases" in spelling else 1)


def test_a_slice_has_the_bits_of_the_whole_and_adapters_add_up(transformer, tmp_path):
    folder, state = transformer
    file = tmp_path / "adapter.safetensors"
    save_file(spelt("diffusers", state), file)
    adapters = find_adapters(f"{file}, {file}@-0.25", "model.lora")
    assert [adapter.scale for adapter in adapters] == [1.0, -0.25]
    kinds = {"device": CPU, "dtype": torch.bfloat16}
    whole = load_dit(folder, T2V, adapters=adapters, **kinds).state_dict()
    part = load_dit(folder, T2V, layers=range(1, 2), with_embed=False, adapters=adapters, **kinds)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in part.state_dict().items())
    module, down, up = next(halves(state, OF_ALL))
    expected = state[f"{module}.weight"] + up @ down - 0.25 * (up @ down)
    torch.testing.assert_close(whole[f"{module}.weight"], expected.bfloat16(), rtol=1e-2, atol=1e-2)


def test_what_is_no_low_rank_sum_is_added_whole(transformer, tmp_path):
    """As distillations publish changes of norms, of the head and of modulation."""
    folder, state = transformer
    added = {
        "diffusion_model.blocks.0.self_attn.norm_q.diff": "blocks.0.attn1.norm_q.weight",
        "diffusion_model.blocks.1.diff_m": "blocks.1.scale_shift_table",
        "diffusion_model.head.head.diff": "proj_out.weight",
        "diffusion_model.head.head.diff_b": "proj_out.bias",
        "diffusion_model.head.diff_m": "scale_shift_table",
        "diffusion_model.patch_embedding.diff": "patch_embedding.weight",
    }
    file = tmp_path / "adapter.safetensors"
    save_file({name: torch.ones_like(state[ours]) for name, ours in added.items()}, file)
    weights = Adapted(Weights(folder, rename_transformer), [Adapter(path=file, scale=2.0)])
    for name in state:
        tensor = torch.empty_like(state[name])
        weights.copy(name, tensor)
        assert torch.equal(tensor, state[name] + 2 * (name in added.values())), name


@pytest.mark.parametrize("beside", [False, True], ids=["in the file", "beside it"])
def test_the_alpha_that_is_stated_counts(transformer, tmp_path, beside):
    folder, state = transformer
    ((module, down, up),) = halves(state, OF_ALL[:1])
    prefix = "base_model.model." if beside else "transformer."
    tensors = {f"{prefix}{module}.lora_A.weight": down, f"{prefix}{module}.lora_B.weight": up}
    stated = {"r": RANK, "lora_alpha": 12, "alpha_pattern": {}, "use_dora": False}
    if beside:
        (tmp_path / "adapter_config.json").write_text(json.dumps(stated))
        save_file(tensors, tmp_path / "adapter_model.safetensors")
    else:
        text = json.dumps({f"transformer.{key}": value for key, value in stated.items()})
        metadata = {"format": "pt", "lora_adapter_metadata": text}
        save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors", metadata)
    (adapter,) = find_adapters(str(tmp_path), "model.lora")
    made = torch.empty_like(state[f"{module}.weight"])
    Adapted(Weights(folder, rename_transformer), [adapter]).copy(f"{module}.weight", made)
    torch.testing.assert_close(made, state[f"{module}.weight"] + 4 * (up @ down))


def test_a_bias_behind_a_sum_is_weighed_as_the_sum(transformer, tmp_path):
    """peft's lora_bias: (up @ down @ x + offset) * alpha / rank."""
    folder, state = transformer
    ((module, down, up),) = halves(state, OF_ALL[:1])
    name = f"base_model.model.{module}"
    tensors = {
        f"{name}.lora_A.weight": down,
        f"{name}.lora_B.weight": up,
        f"{name}.lora_B.bias": torch.arange(len(up), dtype=torch.float32),
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 12}))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    adapters = find_adapters(f"{tmp_path}@0.5", "model.lora")
    made = torch.empty(len(up))
    Adapted(Weights(folder, rename_transformer), adapters).copy(f"{module}.bias", made)
    torch.testing.assert_close(
        made, state[f"{module}.bias"] + 0.5 * 12 / RANK * torch.arange(len(up))
    )


def test_longlive_is_a_base_and_an_adapter_as_its_files_hold_them(transformer, tmp_path):
    _, state = transformer
    wan = {}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        root = "head." if name == "scale_shift_table" else ""
        leaf = leaf.replace("scale_shift_table", "modulation")
        wan[f"model.{root}{original_module(module)}{'.' * bool(module)}{leaf}"] = tensor
    torch.save({"generator": wan}, tmp_path / "longlive_base.pt")
    adapter = {}
    for module, down, up in halves(state, OF_ALL):
        prefix = f"base_model.model.{original_module(module)}"
        adapter |= {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}
    torch.save({"generator_lora": adapter, "critic_lora": adapter}, tmp_path / "lora.pt")
    adapters = find_adapters(str(tmp_path / "lora.pt"), "model.lora")
    base = tmp_path / "longlive_base.pt"
    model = load_dit(base, T2V, device=CPU, dtype=torch.float32, adapters=adapters)
    made = model.state_dict()
    for module, down, up in halves(state, OF_ALL):
        torch.testing.assert_close(made[f"{module}.weight"], state[f"{module}.weight"] + up @ down)
    assert torch.equal(made["scale_shift_table"], state["scale_shift_table"])


def wrong(kind, state):
    ((module, down, up), (other, other_down, _)) = halves(state, OF_ALL[:2])
    return {
        "another kind": {f"diffusion_model.{module}.lokr_w1": down},
        "another model": {
            "transformer.blocks.0.attn2.add_k_proj.lora_A.weight": down,
            "transformer.blocks.0.attn2.add_k_proj.lora_B.weight": up,
        },
        "half": {
            f"transformer.{module}.lora_A.weight": down,
            f"transformer.{module}.lora_B.weight": up,
            f"transformer.{other}.lora_A.weight": other_down,
        },
        "bias of no sum": {f"transformer.{module}.lora_B.bias": up[:, 0].contiguous()},
        "another shape": {
            f"transformer.{module}.lora_A.weight": down[:, 1:].contiguous(),
            f"transformer.{module}.lora_B.weight": up,
        },
    }[kind]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("another kind", r"1 of its tensors are no low-rank sum.*lokr_w1"),
        ("another model", r"2 of its tensors are for modules that this transformer has not"),
        ("half", r"1 of its tensors are without the other half.*attn1\.to_k\.lora_A"),
        ("bias of no sum", r"1 of its tensors are without the other half.*to_q\.lora_B\.bias"),
        ("another shape", r"1 of its tensors are of another shape.*attn1\.to_q\.weight of \(3, "),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(transformer, tmp_path, kind, words):
    folder, state = transformer
    file = tmp_path / "adapter.safetensors"
    save_file(wrong(kind, state), file)
    with pytest.raises(ValueError, match=words) as said:
        Adapted(Weights(folder, rename_transformer), [Adapter(path=file, scale=1.0)])
    assert str(file) in str(said.value)
    assert "leave the adapter out" in str(said.value)


def test_an_adapter_that_is_weighed_otherwise_is_refused(transformer, tmp_path):
    folder, state = transformer
    file = tmp_path / "adapter.safetensors"
    text = json.dumps({"transformer.use_rslora": True})
    save_file(spelt("diffusers", state), file, {"lora_adapter_metadata": text})
    with pytest.raises(ValueError, match=r"use_rslora.*merge it into the transformer"):
        Adapted(Weights(folder, rename_transformer), [Adapter(path=file, scale=1.0)])


def test_what_is_stated_of_an_adapter_in_no_text_is_corrupt(transformer, tmp_path):
    folder, state = transformer
    save_file(spelt("diffusers", state), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes(b"\xff\xfe")
    adapters = find_adapters(str(tmp_path), "model.lora")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: what is stated .* corrupt"):
        Adapted(Weights(folder, rename_transformer), adapters)


def test_every_module_is_spelt_as_wan_does_and_back():
    for name in diffusers_model(I2V).state_dict():
        module, _, leaf = name.rpartition(".")
        if module:
            assert rename_transformer(f"{original_module(module)}.{leaf}") == name


@pytest.mark.parametrize(
    ("setting", "said"), [("nowhere.safetensors", "nowhere.safetensors"), (".@0.5", "has no lora")]
)
def test_an_adapter_that_is_not_there_is_named(setting, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"^model\.lora=.*{said}"):
        find_adapters(setting, "model.lora")
