"""The models: exact sizes, invalid settings, pretrained weights."""

from itertools import pairwise

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

import common.data.hub
import common.pretrained
import train_custom_cnn
import train_custom_vit
import train_resnet
import train_timm
import train_vit
from common.config import InputError
from train_custom_cnn import Block, build_cnn, parse_blocks

LAB_BLOCKS = [Block(channels, pool_size=2) for channels in (32, 64, 128)]


def build(script, **options):
    return script.build_model(script.Config(**options), 12)


def cnn(blocks, *, num_classes=3, image_size=32, hidden=0):
    return build_cnn(parse_blocks(blocks), num_classes, image_size=image_size, hidden=hidden)


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def linear(inputs, outputs):
    return inputs * outputs + outputs


# Architectures -------------------------------------------------------------------------------------------------------


def test_size_of_the_labs_cnn():
    convolutions = linear(27, 32) + linear(9 * 32, 64) + linear(9 * 64, 128)
    head = linear(128 * 28 * 28, 256) + linear(256, 12)
    lab = train_custom_cnn.Config.lab
    assert size(build(train_custom_cnn, **lab)) == convolutions + head == 25_786_700
    assert size(build(train_custom_cnn, **lab | dict(image_size=96))) == 4_815_180


def test_size_of_the_cnn():
    widths = [3, 32, 32, 32, 64, 64, 128, 128, 256, 256]
    expected = sum(9 * a * b + 2 * b for a, b in pairwise(widths)) + linear(256, 12)
    assert size(build(train_custom_cnn)) == expected == 1_185_580


def test_size_of_residual_blocks():
    residual = 9 * 32 * 32 * 2 + 4 * 32 + 9 * 32 * 64 + 9 * 64 * 64 + 32 * 64 + 6 * 64
    model = cnn("32s2-bn,32-bn-res,64s2-bn-res", num_classes=12)
    assert size(model) == 27 * 32 + 2 * 32 + residual + linear(64, 12)


def test_size_of_the_vit():
    block = linear(128, 384) + linear(128, 128) + linear(128, 512) + linear(512, 128) + 4 * 128
    norm, head = 2 * 128, linear(128, 12)
    tokens = linear(3 * 16 * 16, 128) + 128 + 197 * 128
    lab = train_custom_vit.Config.lab
    assert size(build(train_custom_vit, **lab)) == tokens + 6 * block + head, "post-norm has no last norm"
    assert tokens + 6 * block + norm + head == 1_315_212 == size(build(train_custom_vit, **lab | dict(norm_first=True)))
    stem = 27 * 32 + 9 * 32 * 64 + 9 * 64 * 128 + 2 * (32 + 64 + 128) + linear(128, 128)
    expected = stem + 6 * block + norm + head
    assert size(build(train_custom_vit)) == expected, "the positions are fixed and there is no class token"


def test_sizes_of_the_pretrained_architectures():
    with torch.device("meta"):
        resnet, vit = build(train_resnet, weights="none"), build(train_vit, weights="none")
    assert size(resnet) == 11_689_512 - linear(512, 1000) + linear(512, 12)
    assert size(vit) == 86_567_656 - linear(768, 1000) + linear(768, 12)


def test_blocks_of_the_command_line():
    assert parse_blocks("32k3p2,64k3p2,128k3p2") == LAB_BLOCKS == parse_blocks(train_custom_cnn.Config.lab["blocks"])
    assert parse_blocks("8, 16k5linear") == [Block(8), Block(16, kernel_size=5, use_relu=False)]
    assert parse_blocks("8s2-bn-res,9k5s3p4-linear") == [
        Block(8, stride=2, batch_norm=True, residual=True),
        Block(9, kernel_size=5, use_relu=False, pool_size=4, stride=3),
    ]
    assert Block(8) == Block(8, 3, 1, batch_norm=False, residual=False, use_relu=True, pool_size=None)


def test_blocks_are_layers_in_their_order():
    model = cnn("4-linear,8p4", image_size=16, hidden=256)
    kinds = [type(layer) for layer in model]
    assert kinds == [nn.Sequential, nn.Sequential, nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


@pytest.mark.parametrize("blocks", ["4s2-bn-res,8s2p3-res", "4k5s3,8k7-bn", "4k1s2-res,4-res-linear"])
@pytest.mark.parametrize("hidden", [0, 5])
def test_strides_and_shortcuts_fit(blocks, hidden):
    for image_size in (31, 32):
        model = cnn(blocks, image_size=image_size, hidden=hidden)
        assert model(torch.zeros(2, 3, image_size, image_size)).shape == (2, 3)


def test_a_residual_block_adds_its_input():
    """With an all-zero branch, only the shortcut remains: the input, or a 1 x 1 convolution if the shape changes."""
    same, other = cnn("3-res-linear")[0], cnn("4s2-res")[0]
    images = torch.randn(2, 3, 8, 8)
    for block in (same, other):
        nn.init.zeros_(block.branch[-1][0].weight)
        nn.init.zeros_(block.branch[-1][0].bias)
    assert torch.equal(same(images), images)
    weight, bias = other.shortcut[0].weight, other.shortcut[0].bias
    torch.testing.assert_close(other(images), nn.functional.conv2d(images, weight, bias, stride=2))


def test_positions_of_all_places_differ():
    positions = train_custom_vit.sincos(5, 32)
    assert positions.shape == (25, 32) and positions.abs().max() <= 1
    assert torch.cdist(positions, positions).fill_diagonal_(9).min() > 0.1
    rows, columns = positions.view(5, 5, 32).split(16, dim=2)
    assert torch.equal(rows[2, 0], rows[2, 4]) and torch.equal(columns[0, 3], columns[4, 3])
    torch.testing.assert_close(columns[0, 3], rows[3, 0])


@pytest.mark.parametrize(
    "more", [{}, dict(pool="class"), dict(positions="learned"), dict(stem="patch", norm_first=False)]
)
def test_every_kind_of_vit_learns_a_batch(more):
    torch.manual_seed(0)
    small = dict(image_size=16, patch_size=4, dim=32, depth=2, num_heads=4)
    model = train_custom_vit.build_model(train_custom_vit.Config(**small | more), 3)
    images, labels = torch.randn(9, 3, 16, 16), torch.arange(9) % 3
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1


@pytest.mark.parametrize(
    ("script", "options", "words"),
    [
        (train_custom_vit, dict(dim=100, num_heads=8), "--dim 100 .*--num-heads 8"),
        (train_custom_vit, dict(image_size=100, patch_size=16), "--image-size 100 .*--patch-size 16"),
        (train_custom_vit, dict(image_size=24, patch_size=12), "--stem conv .*--patch-size .*power of 2.* 12"),
        (train_custom_cnn, dict(blocks="4p2,4p2,4p2", image_size=7), "--blocks.*--image-size 7"),
        (train_custom_cnn, dict(blocks="32,p2"), "--blocks: 'p2'"),
        (train_custom_cnn, dict(blocks="0"), "--blocks: '0' .*channels"),
        (train_custom_cnn, dict(blocks="8,4k2s2"), "--blocks: '4k2s2' .*odd"),
        (train_custom_cnn, dict(blocks="32s0"), "--blocks: '32s0' .*stride"),
        (train_custom_cnn, dict(blocks="32k0"), "--blocks: '32k0' .*kernel"),
        (train_custom_cnn, dict(blocks="32p0"), "--blocks: '32p0' .*pool"),
        (train_vit, dict(image_size=100, weights="none"), "--image-size 100 .*patch size 16"),
        (train_vit, dict(model="vit_tiny_patch16_224"), "--model vit_tiny_patch16_224 .*vit_b_16.*train_timm.py"),
        (train_vit, dict(model="resnet18", weights="none"), "--model resnet18 .*vit_b_16"),
        (train_resnet, dict(model="vit_b_16"), "--model vit_b_16 .*resnet18"),
    ],
)
def test_an_invalid_setting_is_named_with_its_value(script, options, words):
    with pytest.raises(InputError, match=words):
        build(script, **options)


# Pretrained weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "name", "head"),
    [
        (train_resnet, "resnet18-f37072fd.pth", "fc."),
        pytest.param(train_vit, "vit_b_16-c867db91.pth", "heads.", marks=pytest.mark.slow),
    ],
)
def test_imagenet_weights_are_in_the_backbone_and_not_in_the_head(hub_folder, script, name, head):
    config = script.Config(image_size=224)
    torch.manual_seed(1)
    given = torchvision.models.get_model(config.model).state_dict()
    torch.save(given, hub_folder / name)
    loaded = script.build_model(config, 1000).state_dict()  # as many classes as ImageNet: the head is new nonetheless
    for key, value in loaded.items():
        if not key.startswith(head):
            assert torch.equal(value, given[key]), key
    assert not any(torch.equal(value, given.get(key, value + 1)) for key, value in loaded.items() if head in key)


def test_weights_of_another_image_size(hub_folder):
    with torch.device("meta"):  # without the random numbers, which take seconds
        shapes = torchvision.models.get_model("vit_b_16", image_size=224).state_dict()
    given = {name: torch.full(value.shape, float(i)) for i, (name, value) in enumerate(shapes.items())}
    given["encoder.pos_embedding"] = torch.randn(1, 197, 768)
    torch.save(given, hub_folder / "vit_b_16-c867db91.pth")
    loaded = build(train_vit, image_size=64).state_dict()
    assert loaded["encoder.pos_embedding"].shape == (1, 17, 768)
    assert torch.equal(loaded["encoder.pos_embedding"][:, 0], given["encoder.pos_embedding"][:, 0])
    assert torch.equal(loaded["conv_proj.weight"], given["conv_proj.weight"])


def test_weights_that_are_not_available(hub_folder, monkeypatch):
    monkeypatch.setattr(common.pretrained, "reachable", lambda url: False)
    monkeypatch.setattr(common.data.hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    for script, model in [(train_resnet, "resnet18"), (train_vit, "vit_b_16"), (train_timm, "test_vit")]:
        with pytest.raises(InputError, match=f"{model}.*--weights none"), torch.device("meta"):
            build(script, model=model)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_of_a_file(tmp_path, suffix):
    path = str(tmp_path / f"weights{suffix}")
    given = torchvision.models.resnet18(num_classes=5).state_dict()
    safetensors.torch.save_file(given, path) if suffix == ".safetensors" else torch.save(given, path)
    loaded = build(train_resnet, weights=path).state_dict()
    assert torch.equal(loaded["layer4.1.conv2.weight"], given["layer4.1.conv2.weight"]) and len(loaded["fc.bias"]) == 12
    with pytest.raises(InputError, match="do not fit .*layer1.2"), torch.device("meta"):
        build(train_resnet, weights=path, model="resnet34")


def test_files_that_hold_no_weights(tmp_path):
    (tmp_path / "broken.pth").write_bytes(b"hello")
    for name, words in [("broken.pth", "with a state dict"), ("missing.pth", "no such file")]:
        with pytest.raises(InputError, match=f"{name}.*{words}"), torch.device("meta"):
            build(train_resnet, weights=str(tmp_path / name))


def test_a_pickle_with_code_in_it_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("owned").touch, ())

    torch.save({"fc.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="with a state dict"), torch.device("meta"):
        build(train_resnet, weights=str(tmp_path / "evil.pth"))
    assert not (tmp_path / "owned").exists()


# Learning rates and freezing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "head", "more"),
    [
        (train_resnet, "fc.", {}),
        (train_vit, "heads.", {}),
        (train_timm, "head.", dict(model="vit_tiny_patch16_224")),
        (train_timm, "head.fc.", {}),
    ],
)
def test_freeze_leaves_the_head(script, head, more):
    with torch.device("meta"):  # without the random numbers, which take seconds
        model = build(script, weights="none", freeze="backbone", **more)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == [head + "weight", head + "bias"]


def rates(script, model, /, **options):
    """The learning rate of each parameter as a fraction of `--lr`, by name."""
    optimizer = script.build_optimizer(script.Config(**options), model)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: scale[id(p)] for name, p in model.named_parameters()}
    assert len(by_name) == len(scale)
    return by_name


@pytest.mark.parametrize(("script", "name"), [(train_vit, "vit_b_32"), (train_timm, "vit_tiny_patch16_224")])
def test_layer_wise_learning_rates(script, name):
    with torch.device("meta"):
        model = build(script, model=name, weights="none", image_size=32)
    found = rates(script, model, model=name, weights="imagenet", layer_decay=0.5)
    first, last = ("encoder_layer_0.", "encoder_layer_11.") if name == "vit_b_32" else ("blocks.0.", "blocks.11.")
    assert {rate for parameter, rate in found.items() if last in parameter} == {0.5}
    assert {rate for parameter, rate in found.items() if first in parameter} == {0.5**12}
    top = ("encoder.ln.", "heads.", "head.")  # timm counts the last norm as a part of the last block
    assert {rate for parameter, rate in found.items() if parameter.startswith(top)} == {1.0}
    assert found["class_token" if name == "vit_b_32" else "cls_token"] == 0.5**13
    assert {*rates(script, model, model=name, weights="none").values()} == {1}, "nothing is pretrained"


def test_the_learning_rate_of_a_resnets_backbone():
    with torch.device("meta"):
        model = build(train_resnet, weights="none")
    found = rates(train_resnet, model, backbone_lr=0.1)
    assert {rate for name, rate in found.items() if name.startswith("fc.")} == {1.0}
    assert {rate for name, rate in found.items() if not name.startswith("fc.")} == {0.1}
