"""What a recipe lacks is said before a run's folder is made."""

import json
import re
import shutil

import pytest
from safetensors.torch import load_file, save_file

from longreel.configs.train_load import load_training
from longreel.jobs.train.launch import train
from longreel.models.shipped import shipped_folder


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("shapes", ["dit.vae="], r"^dit\.vae= is no folder.*longreel train shapes-vae"),
        ("shapes", ["dit.vae={tmp}/none"], r"^dit\.vae=.*/none is no folder"),
        ("shapes", ["dit.vae={tmp}", "dit.arch=shpes"], r"^dit\.arch=shpes.*shapes"),
        ("shapes", ["dit.start={tmp}/none"], r"^dit\.start=.*/none.*longreel train shapes"),
        ("shapes-live", ["live.start={tmp}/none"], r"^live\.start=.*longreel train shapes"),
        ("shapes", ["dit.start={tmp}"], r"^dit\.start=.* has no transformer"),
        ("shapes-live", ["live.start={tmp}"], r"^live\.start=.* has no transformer"),
        ("shapes-decoder", ["vae.start={tmp}/none"], r"^vae\.start=.*/none is no folder"),
        ("shapes-decoder", ["vae.start={tmp}"], r" holds no weights.*; set vae\.start to a folder"),
        ("shapes", ["dit.vae={tmp}"], r" holds no weights.*; set dit\.vae to a folder"),
        (
            "shapes-live",
            ["live.start={tmp}", "live.arch=shapes"],
            r"^live\.arch=shapes is no causal model.*shapes-live",
        ),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_left_behind(name, overrides, words, tmp_path):
    there = [override.format(tmp=tmp_path) for override in overrides]
    output = tmp_path / "run"
    config = load_training(name, [*there, f"run.output={output}"])
    with pytest.raises(ValueError, match=words):
        train(config)
    assert not output.exists()


def drop_a_tensor(folder):
    (file,) = folder.glob("*.safetensors")
    state = load_file(file)
    state.popitem()
    save_file(state, file)


def change_config(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


SPOILS = {
    "vae of another size": lambda model: change_config(model / "vae", base_dim=16),
    "vae without a tensor": lambda model: drop_a_tensor(model / "vae"),
    "vae of two files": lambda model: shutil.copy(
        model / "vae/diffusion_pytorch_model.safetensors", model / "vae/other.safetensors"
    ),
    "transformer of other heads": lambda model: change_config(
        model / "transformer", num_attention_heads=5
    ),
    "transformer without a tensor": lambda model: drop_a_tensor(model / "transformer"),
    "words of another width": lambda model: change_config(model / "text_encoder", d_model=8),
    "words without a size": lambda model: (model / "text_encoder/config.json").unlink(),
    "words without a tensor": lambda model: drop_a_tensor(model / "text_encoder"),
    "tokenizer cut short": lambda model: (model / "tokenizer/tokenizer.json").write_text("{"),
}


READ = {  # training, field, and the parts that it reads there
    ("shapes", "dit.start"): ("transformer", "words", "tokenizer"),
    ("shapes", "dit.vae"): ("vae",),
    ("shapes-live", "live.start"): ("transformer", "words", "tokenizer", "vae"),
    ("shapes-decoder", "vae.start"): ("vae",),
    ("finetune", "finetune.checkpoint"): ("transformer", "words", "tokenizer", "vae"),
}


@pytest.mark.parametrize(
    ("name", "field", "spoilt"),
    [(*of, spoilt) for of, parts in READ.items() for spoilt in SPOILS if spoilt.startswith(parts)],
)
def test_a_model_that_does_not_fit_is_named_by_the_field_that_it_is_in(
    name, field, spoilt, tmp_path
):
    """And no field of a render, which a training has not."""
    whole = shipped_folder("shipped:shapes", "model.checkpoint")
    model = shutil.copytree(whole, tmp_path / "spoilt")
    SPOILS[spoilt](model)
    overrides = [f"{field}={model}", f"run.output={tmp_path / 'run'}"]
    if field == "dit.start":
        overrides.append(f"dit.vae={whole}")
    if name == "finetune":
        name = finetune(tmp_path)
        overrides += [f"data.folder={tmp_path / 'videos'}", "finetune.arch=shapes"]
    else:
        overrides.append(f"{field.partition('.')[0]}.compiled=false")
    with pytest.raises(ValueError, match=re.escape(field)) as error:
        train(load_training(name, overrides))
    said = re.findall(r"\bmodel\.(?:checkpoint|arch|transformer)\b", str(error.value))
    assert said == []
    assert {path.name for path in tmp_path.iterdir()} <= {"spoilt", "finetune.yaml"}


def finetune(folder):
    """A training of its own kind, as a file."""
    path = folder / "finetune.yaml"
    path.write_text("recipe: finetune\n")
    return str(path)


@pytest.mark.parametrize(
    ("name", "start", "field"),
    [("shapes", "dit.vae", "dit.cache"), ("shapes-live", "live.start", "live.cache")],
)
def test_a_cache_that_is_no_folder_is_said_before_a_clip_is_drawn(name, start, field, tmp_path):
    whole = shipped_folder("shipped:shapes", "model.checkpoint")
    file = tmp_path / "clips"
    file.touch()
    overrides = [f"{start}={whole}", f"{field}={file}", f"run.output={tmp_path / 'run'}"]
    overrides.append(f"{field.partition('.')[0]}.compiled=false")
    with pytest.raises(ValueError, match=rf"^{field}={file} cannot be made \(File exists\), so .*"):
        train(load_training(name, overrides))
    assert list(tmp_path.iterdir()) == [file]


def test_an_output_that_is_a_file_is_said_before_anything_is_made(tmp_path):
    file = tmp_path / "run"
    file.touch()
    with pytest.raises(ValueError, match=r"^run\.output=.*/run is a file, .*name another"):
        train(load_training("shapes-vae", ["vae.compiled=false", f"run.output={file}"]))


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("data.width=32000", r"^data\.width=32000 .* 16 pixels.* multiple of 16 up to 16384"),
        ("data.frames=4097", r"^data\.frames=4097 .* the 1024 positions of .* at most 4093"),
    ],
)
def test_clips_that_no_model_takes_are_refused_before_one_is_read(size, words, tmp_path):
    whole = shipped_folder("shipped:shapes", "model.checkpoint")
    overrides = [f"finetune.checkpoint={whole}", "finetune.arch=wan2.1-t2v-1.3b", size]
    overrides += [f"data.folder={tmp_path}", f"run.output={tmp_path / 'run'}"]
    with pytest.raises(ValueError, match=words):
        train(load_training(finetune(tmp_path), overrides))
