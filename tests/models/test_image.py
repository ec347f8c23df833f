"""Pictures and their CLIP tokens, against diffusers and transformers."""

import contextlib
import gc
import json
import random
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline
from diffusers.utils import load_image
from diffusers.video_processor import VideoProcessor
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_image import (
    NUM_TOKENS,
    write_image_encoder,
    write_image_processor,
    write_original_image_encoder,
)
from transformers import CLIPImageProcessorPil, CLIPVisionModel

from longreel.models.image import fit_image, open_image
from longreel.models.image_encoder import (
    ImageSource,
    check_image_encoder,
    encode_images,
    load_image_encoder,
)

CPU = torch.device("cpu")
IMAGE_DIM = 32


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(noise, "RGBA").convert(mode)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> ImageSource:
    """A checkpoint that no test changes."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def write_checkpoint(folder: Path) -> ImageSource:
    write_image_encoder(folder / "image_encoder", IMAGE_DIM)
    write_image_processor(folder / "image_processor")
    return ImageSource(folder / "image_encoder", folder / "image_processor", IMAGE_DIM)


def encode(images, source, dtype=torch.float32):
    return encode_images(images, source, device=CPU, dtype=dtype)


@pytest.mark.parametrize("sizes", [[(61, 47)], [(61, 47), (30, 90)]])
def test_tokens_are_diffusers_bit_for_bit(published, sizes):
    images = [picture(*size) for size in sizes]
    pipeline = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        image_processor=CLIPImageProcessorPil.from_pretrained(published.processor),
        image_encoder=CLIPVisionModel.from_pretrained(published.encoder),
    )
    with torch.no_grad():
        expected = pipeline.encode_image(images, device=CPU).reshape(1, -1, IMAGE_DIM)

    tokens = encode(images, published)
    assert tokens.shape == (1, len(images) * NUM_TOKENS, IMAGE_DIM)
    assert torch.equal(tokens, expected)
    assert torch.equal(encode(images, published, torch.bfloat16), expected.bfloat16())


def test_the_original_file_gives_the_tokens_of_the_diffusers_folder(published, tmp_path):
    write_original_image_encoder(tmp_path / "models_clip.pth", IMAGE_DIM)
    original = replace(published, encoder=tmp_path / "models_clip.pth")
    images = [picture(40, 30)]
    assert torch.equal(encode(images, original), encode(images, published))


def test_a_folder_of_all_of_clip_gives_the_tokens_of_its_vision_tower(published, tmp_path):
    source = write_checkpoint(tmp_path)
    tensors = load_file(source.encoder / "model.safetensors")
    tensors = {f"vision_model.{name}": tensor for name, tensor in tensors.items()}
    tensors["vision_model.embeddings.position_ids"] = torch.arange(NUM_TOKENS)[None]
    tensors["visual_projection.weight"] = torch.zeros(8, IMAGE_DIM)
    tensors["text_model.final_layer_norm.weight"] = torch.ones(8)
    save_file(tensors, source.encoder / "model.safetensors")
    config = json.loads((source.encoder / "config.json").read_text())
    whole = {"model_type": "clip", "vision_config": config}
    (source.encoder / "config.json").write_text(json.dumps(whole))

    images = [picture(40, 30)]
    assert torch.equal(encode(images, source), encode(images, published))


def test_without_files_the_encoder_has_the_published_shape_and_is_always_the_same():
    source = ImageSource(None, None, IMAGE_DIM)
    before = torch.random.get_rng_state()
    tokens = encode([picture(300, 200)], source)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert tokens.shape == (1, 257, IMAGE_DIM)
    assert torch.equal(tokens, encode([picture(300, 200)], source))
    assert not torch.equal(tokens, encode([picture(301, 200)], source))


def test_without_a_processor_s_folder_all_of_a_picture_is_read_as_wan_s_own_code_does(published):
    image = picture(90, 30)
    numbers = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
    scaled = torch.nn.functional.interpolate(
        numbers[None], size=(28, 28), mode="bicubic", align_corners=False
    )
    like = CLIPImageProcessorPil()  # its mean and deviation are those of Wan's code
    mean, std = (torch.tensor(x)[:, None, None] for x in (like.image_mean, like.image_std))
    tower = CLIPVisionModel.from_pretrained(published.encoder)
    with torch.no_grad():
        hidden = tower((scaled * 0.5 + 0.5 - mean) / std, output_hidden_states=True).hidden_states
    tokens = encode([image], replace(published, processor=None))
    torch.testing.assert_close(tokens, hidden[-2], rtol=1e-4, atol=1e-5)  # [0, 1] beside [-1, 1]


def test_the_encoder_is_released_when_the_tokens_are_there(published):
    encode([picture(40, 30)], published)
    assert not [o for o in gc.get_objects() if type(o) is CLIPVisionModel]


def test_an_encoder_that_does_not_fit_says_what_to_do(published, tmp_path):
    with pytest.raises(ValueError, match=r"makes 32 channels and model\.arch reads 1280"):
        encode([picture(40, 30)], replace(published, image_dim=1280))
    CLIPImageProcessorPil().save_pretrained(tmp_path / "large")
    with pytest.raises(ValueError, match=r"makes pictures of \(224, 224\) .* reads \(28, 28\)"):
        encode([picture(40, 30)], replace(published, processor=tmp_path / "large"))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json is not there"):
        encode([picture(40, 30)], replace(published, processor=tmp_path))
    torch.save({"visual.head": torch.zeros(4, 4)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth is not the CLIP that Wan 2\.1 uses"):
        load_image_encoder(tmp_path / "other.pth", IMAGE_DIM, device=CPU)
    (tmp_path / "folder").mkdir()
    tensors = load_file(published.encoder / "model.safetensors")
    save_file(tensors, tmp_path / "folder" / "model.safetensors")
    with pytest.raises(ValueError, match=r"config\.json is not there or not readable"):
        load_image_encoder(tmp_path / "folder", IMAGE_DIM, device=CPU)


def test_an_encoder_of_another_kind_is_known_by_its_headers(published, tmp_path):
    check_image_encoder(published, None)
    check_image_encoder(published, 2 * NUM_TOKENS)
    with pytest.raises(ValueError, match=r"makes 5 tokens of a picture and .* 514 positions"):
        check_image_encoder(published, 514)
    CLIPImageProcessorPil().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"makes pictures of \(224, 224\) .* reads \(28, 28\)"):
        check_image_encoder(replace(published, processor=tmp_path), None)


def save_upright(path: Path) -> None:
    picture(20, 30).save(path)


def save_lying_on_its_side(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn right by 90 degrees
    picture(20, 30).save(path, exif=exif)


def save_with_alpha(path: Path) -> None:
    picture(20, 30, "RGBA").save(path)


def save_palette(path: Path) -> None:
    picture(20, 30).quantize(16).save(path)


def save_grey(path: Path) -> None:
    picture(20, 30, "L").save(path)


@pytest.mark.parametrize(
    "save", [save_upright, save_lying_on_its_side, save_with_alpha, save_palette, save_grey]
)
def test_pictures_are_opened_as_diffusers_opens_them(tmp_path, save):
    save(tmp_path / "picture.png")
    opened = open_image(tmp_path / "picture.png")
    expected = load_image(str(tmp_path / "picture.png"))
    assert opened.mode == "RGB"
    assert opened.size == ((30, 20) if save is save_lying_on_its_side else (20, 30))
    assert np.array_equal(opened, expected)


def test_a_bad_tag_of_a_camera_spoils_no_picture(tmp_path):
    """Nothing of the tags is written anew, in which PIL would fail."""
    exif = Image.Exif()
    exif[0x0112], exif[0x0110] = 6, "camera"
    path = tmp_path / "picture.jpg"
    picture(20, 30).save(path, exif=exif)
    data = path.read_bytes()
    tag = data.index(b"\x01\x10") if b"MM" in data[:40] else data.index(b"\x10\x01")
    damaged = bytearray(data)
    damaged[tag + 3 if b"MM" in data[:40] else tag + 2] = 12  # doubles, where letters are
    path.write_bytes(damaged)
    assert open_image(path).size == (30, 20)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff", "avif"])
def test_whatever_is_damaged_is_said_to_be(tmp_path, kind):
    path = tmp_path / f"picture.{kind}"
    picture(60, 60).save(path)
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert open_image(path).mode == "RGB"


def test_a_palette_with_half_transparent_colours_opens_without_a_warning(tmp_path):
    image = picture(20, 30).quantize(4)
    image.save(tmp_path / "picture.png", transparency=bytes([0, 128, 255, 255]))
    assert np.array_equal(open_image(tmp_path / "picture.png"), image.convert("RGB"))


def test_sixteen_bits_of_grey_keep_their_shades(tmp_path):
    shades = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(shades * 257).save(tmp_path / "picture.png")
    opened = open_image(tmp_path / "picture.png")
    assert np.array_equal(np.asarray(opened)[..., 1], shades)


def write_text(path: Path) -> None:
    path.write_text("not a picture")


def write_half(path: Path) -> None:
    picture(60, 60).save(path)
    path.write_bytes(path.read_bytes()[:4000])


def write_floats(path: Path) -> None:
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(path, format="TIFF")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, r"does not exist, .*give the path of a PNG"),
        (Path.mkdir, r"is not a file, .*give the path of a PNG"),
        (write_text, r"is not an image in a format we read; convert it"),
        (write_half, r"cannot be read \(.*\): it is damaged .*save it again"),
        (write_floats, r"has F pixels, .*save it as PNG with 8 or 16 bits"),
    ],
)
def test_a_picture_that_cannot_be_used_names_field_file_and_way_out(tmp_path, write, message):
    write(tmp_path / "picture.png")
    with pytest.raises(ValueError, match=rf"^video\.last_image=.*picture\.png {message}"):
        open_image(tmp_path / "picture.png", "video.last_image")


@pytest.mark.parametrize("limit", [599, 200], ids=["over the limit", "over twice the limit"])
def test_an_absurdly_large_picture_is_refused(tmp_path, monkeypatch, limit):
    save_upright(tmp_path / "picture.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    assert open_image(tmp_path / "picture.png").size == (20, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=rf"has more than {limit} pixels, .*scale it down"):
        open_image(tmp_path / "picture.png")


@pytest.mark.parametrize("size", [(96, 64), (30, 20), (241, 161), (1000, 667)])
def test_a_picture_of_the_videos_ratio_is_fitted_as_in_diffusers(size):
    image = picture(*size)
    expected = VideoProcessor(vae_scale_factor=8).preprocess(image, height=64, width=96)
    assert torch.equal(fit_image(image, 64, 96), expected)


@pytest.mark.parametrize(
    ("size", "box"), [((200, 64), (52, 0, 148, 64)), ((48, 101), (0, 34, 48, 66)), ((1, 9), None)]
)
def test_a_picture_of_another_ratio_is_cut_in_the_middle_and_not_stretched(size, box):
    image = picture(*size)
    fitted = fit_image(image, 64, 96)
    assert fitted.shape == (1, 3, 64, 96)
    if box is not None:
        cut = image.crop(box)
        expected = VideoProcessor(vae_scale_factor=8).preprocess(cut, height=64, width=96)
        assert torch.equal(fitted, expected)
