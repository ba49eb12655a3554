"""The four models: exact sizes, wrong settings, pretrained weights."""

from itertools import pairwise

import pytest
import safetensors.torch
import torch
import torchvision

import common.weights
import train_custom_cnn
import train_custom_vit
import train_resnet
import train_vit
from common.config import InputError
from train_custom_cnn import Block, build_cnn, parse_blocks
from train_custom_vit import build_vit

LAB_BLOCKS = [Block(channels, 3, True, 2) for channels in (32, 64, 128)]


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def linear(inputs, outputs):
    return inputs * outputs + outputs


def test_parameter_counts():
    convolutions = linear(27, 32) + linear(9 * 32, 64) + linear(9 * 64, 128)
    assert size(build_cnn(LAB_BLOCKS, 12)) == convolutions + linear(128 * 28 * 28, 256) + linear(256, 12) == 25_786_700
    assert size(build_cnn(LAB_BLOCKS, 12, image_size=96)) == 4_815_180
    block = linear(128, 384) + linear(128, 128) + linear(128, 512) + linear(512, 128) + 4 * 128
    tokens = linear(3 * 16 * 16, 128) + 128 + 197 * 128
    assert size(build_vit(224, 12)) == tokens + 6 * block + 2 * 128 + linear(128, 12) == 1_315_212
    stem = 27 * 32 + 9 * 32 * 64 + 9 * 64 * 128 + 2 * (32 + 64 + 128) + linear(128, 128)
    ours = train_custom_vit.build_model(train_custom_vit.Config(), 12)
    assert size(ours) == stem + 6 * block + 2 * 128 + linear(128, 12), "fixed positions, no class token"
    lab = train_custom_vit.Config(**train_custom_vit.Config.lab)
    assert size(train_custom_vit.build_model(lab, 12)) == 1_315_212 - 256, "post-norm has no last norm"
    widths = [3, 32, 32, 32, 64, 64, 128, 128, 256, 256]
    ours = train_custom_cnn.build_model(train_custom_cnn.Config(), 12)
    assert size(ours) == sum(9 * a * b + 2 * b for a, b in pairwise(widths)) + linear(256, 12) == 1_185_580
    blocks = parse_blocks("32s2-bn,32-bn-res,64s2-bn-res")
    residual = 9 * 32 * 32 * 2 + 4 * 32 + 9 * 32 * 64 + 9 * 64 * 64 + 32 * 64 + 6 * 64
    assert size(build_cnn(blocks, 12, hidden=0)) == 27 * 32 + 2 * 32 + residual + linear(64, 12)
    resnet = train_resnet.build_model(train_resnet.Config(weights="none"), 12)
    assert size(resnet) == 11_689_512 - linear(512, 1000) + linear(512, 12)
    vit = train_vit.build_model(train_vit.Config(weights="none"), 12)
    assert size(vit) == 86_567_656 - linear(768, 1000) + linear(768, 12)


def test_blocks_of_the_command_line():
    assert parse_blocks("32k3p2,64k3p2,128k3p2") == LAB_BLOCKS == parse_blocks(train_custom_cnn.Config.lab["blocks"])
    assert parse_blocks("8, 16k5linear") == [Block(8, 3, True, None), Block(16, 5, False, None)]
    assert parse_blocks("8s2-bn-res,9k5s3p4-linear") == [
        Block(8, stride=2, batch_norm=True, residual=True),
        Block(9, 5, use_relu=False, pool_size=4, stride=3),
    ]
    with pytest.raises(InputError, match="'p2' is no block"):
        parse_blocks("32,p2")


def test_blocks_may_be_dicts():
    model = build_cnn([{"channels": 4, "use_relu": False}, {"channels": 8, "pool_size": 4}], 3, image_size=16)
    kinds = [type(layer).__name__ for layer in model]
    assert kinds[:5] == ["Sequential", "Sequential", "ReLU", "MaxPool2d", "Flatten"]
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


@pytest.mark.parametrize("blocks", ["4s2-bn-res,8s2p3-res", "4k5s3,8k7-bn", "4k1s2-res,4-res-linear"])
@pytest.mark.parametrize("hidden", [0, 5])
def test_strides_and_shortcuts_fit(blocks, hidden):
    for image_size in (31, 32):
        model = build_cnn(parse_blocks(blocks), 3, image_size=image_size, hidden=hidden)
        assert model(torch.zeros(2, 3, image_size, image_size)).shape == (2, 3)


def test_a_residual_block_adds_its_input():
    """With a branch of zeros the shortcut is left: the input, or a 1 x 1 convolution to another shape."""
    same, other = (
        build_cnn(parse_blocks("3-res-linear"), 2)[0],
        build_cnn(parse_blocks("4s2-res"), 2)[0],
    )
    images = torch.randn(2, 3, 8, 8)
    for block in (same, other):
        torch.nn.init.zeros_(block.branch[-1][0].weight), torch.nn.init.zeros_(block.branch[-1][0].bias)
    assert torch.equal(same(images), images)
    weight, bias = other.shortcut[0].weight, other.shortcut[0].bias
    torch.testing.assert_close(other(images), torch.nn.functional.conv2d(images, weight, bias, stride=2))


def test_positions_tell_every_place_from_every_other():
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
    options = dict(stem="conv", positions="sincos", pool="mean") | more
    model = build_vit(16, 3, patch_size=4, dim=32, depth=2, num_heads=4, **options)
    images, labels = torch.randn(9, 3, 16, 16), torch.arange(9) % 3
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: build_vit(224, 12, dim=100, num_heads=8), "dim 100 .*num_heads 8"),
        (lambda: build_vit(100, 12), "image size 100 .*patch size 16"),
        (lambda: build_cnn(LAB_BLOCKS, 12, image_size=7), "nothing of 7 pixels"),
        (lambda: build_cnn([Block(0)], 12), "channels=0"),
        (lambda: build_cnn([Block(4, 2, stride=2)], 12), "kernel_size=2.*odd"),
        (lambda: build_cnn(parse_blocks("32s0"), 12), "stride=0"),
        (lambda: build_cnn(parse_blocks("32k0"), 12), "kernel_size=0"),
        (lambda: build_vit(24, 12, patch_size=12, stem="conv"), "patch size 12 is no power of 2"),
        (lambda: train_vit.build_model(train_vit.Config(image_size=100, weights="none"), 12), "100 .*patch size 16"),
        (lambda: train_vit.build_model(train_vit.Config(model="vit_x"), 12), "vit_x.*vit_b_16"),
        (lambda: train_vit.build_model(train_vit.Config(model="resnet18", weights="none"), 12), "resnet18"),
        (lambda: train_resnet.build_model(train_resnet.Config(model="vit_b_16"), 12), "vit_b_16 .*resnet18"),
    ],
)
def test_a_wrong_combination_names_the_values(build, words):
    with pytest.raises(InputError, match=words):
        build()


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """The folder where torch.hub keeps its files, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize(
    ("script", "name", "head", "image_size"),
    [(train_resnet, "resnet18-f37072fd.pth", "fc.", 224), (train_vit, "vit_b_16-c867db91.pth", "heads.", 224)],
)
def test_imagenet_weights_are_in_the_backbone_and_not_in_the_head(hub_folder, script, name, head, image_size):
    config = script.Config(image_size=image_size)
    torch.manual_seed(1)
    given = torchvision.models.get_model(config.model).state_dict()
    torch.save(given, hub_folder / name)
    loaded = script.build_model(config, 1000).state_dict()  # as many classes as ImageNet: the head is new all the same
    for key, value in loaded.items():
        if not key.startswith(head):
            assert torch.equal(value, given[key]), key
    assert not any(torch.equal(value, given.get(key, value + 1)) for key, value in loaded.items() if head in key)


def test_weights_of_another_image_size(hub_folder):
    given = torchvision.models.get_model("vit_b_16", image_size=224).state_dict()
    torch.save(given, hub_folder / "vit_b_16-c867db91.pth")
    loaded = train_vit.build_model(train_vit.Config(image_size=64), 12).state_dict()
    assert loaded["encoder.pos_embedding"].shape == (1, 17, 768)
    assert torch.equal(loaded["encoder.pos_embedding"][:, 0], given["encoder.pos_embedding"][:, 0])
    assert torch.equal(loaded["conv_proj.weight"], given["conv_proj.weight"])


def test_weights_that_cannot_be_had(hub_folder, monkeypatch):
    monkeypatch.setattr(common.weights, "reachable", lambda url: False)
    monkeypatch.setattr(common.weights.huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    for script, model in [(train_resnet, "resnet18"), (train_vit, "vit_b_16"), (train_vit, "vit_tiny_patch16_224")]:
        with pytest.raises(InputError, match=f"{model}.*cannot be downloaded.*--weights none"):
            script.build_model(script.Config(model=model), 12)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_of_a_file(tmp_path, suffix):
    path = str(tmp_path / f"weights{suffix}")
    given = torchvision.models.resnet18(num_classes=5).state_dict()
    safetensors.torch.save_file(given, path) if suffix == ".safetensors" else torch.save(given, path)
    loaded = train_resnet.build_model(train_resnet.Config(weights=path), 12).state_dict()
    assert torch.equal(loaded["layer4.1.conv2.weight"], given["layer4.1.conv2.weight"]) and len(loaded["fc.bias"]) == 12
    with pytest.raises(InputError, match="do not fit this model"):
        train_resnet.build_model(train_resnet.Config(weights=path, model="resnet34"), 12)
    with pytest.raises(InputError, match="no such file"):
        train_resnet.build_model(train_resnet.Config(weights=path + "x"), 12)
    (tmp_path / "broken.pth").write_bytes(b"hello")
    with pytest.raises(InputError, match="cannot be read"):
        train_resnet.build_model(train_resnet.Config(weights=str(tmp_path / "broken.pth")), 12)


def test_a_pickle_with_code_in_it_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("owned").touch, ())

    torch.save({"fc.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="cannot be read"):
        train_resnet.build_model(train_resnet.Config(weights=str(tmp_path / "evil.pth")), 12)
    assert not (tmp_path / "owned").exists()


def test_freeze_leaves_the_head(hub_folder):
    for script, head in [(train_resnet, "fc."), (train_vit, "heads.")]:
        model = script.build_model(script.Config(weights="none", freeze="backbone"), 12)
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert trained == [head + "weight", head + "bias"]


@pytest.mark.parametrize("model", ["vit_b_32", "vit_tiny_patch16_224"])
def test_layer_wise_learning_rates(tmp_path, model):
    config = train_vit.Config(model=model, weights="none", image_size=32)
    built = train_vit.build_model(config, 12)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(built.state_dict(), path)
    config = train_vit.Config(model=model, weights=str(path), image_size=32, layer_decay=0.5)
    optimizer = train_vit.build_optimizer(config, built)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: scale[id(p)] for name, p in built.named_parameters()}
    assert len(by_name) == len(scale)
    first, last = ("encoder_layer_0.", "encoder_layer_11.") if model == "vit_b_32" else ("blocks.0.", "blocks.11.")
    assert {by_name[name] for name in by_name if last in name} == {0.5}
    assert {by_name[name] for name in by_name if first in name} == {0.5**12}
    top = ("encoder.ln.", "heads.", "norm.", "head.")
    assert {value for name, value in by_name.items() if name.startswith(top)} == {1.0}
    assert by_name["class_token" if model == "vit_b_32" else "cls_token"] == 0.5**13
    assert {g["lr_scale"] for g in train_vit.build_optimizer(train_vit.Config(weights="none"), built).param_groups} == {
        1
    }
