"""TimmEncoder against timm itself."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm_table
import torch
from torch import nn

from hrda_lib import MultiResSegmenter, ScaleAttentionHead
from hrda_lib.models import DAFormerHead, TimmEncoder

timm = pytest.importorskip("timm")


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("resnet18", (2, 4, 8, 16, 32)),
        ("convnext_atto", (4, 8, 16, 32)),
        ("swin_tiny_patch4_window7_224", (4, 8, 16, 32)),  # channels last in timm, and made for one size
        ("mobilenetv3_small_050", (2, 4, 8, 16, 32)),  # of a class of timm that states no layout
        ("vit_tiny_patch16_224", (16, 16, 16)),
    ],
)
@torch.no_grad()
def test_levels_are_channels_first_at_their_strides(name: str, strides: tuple[int, ...]) -> None:
    encoder = TimmEncoder(name).eval()
    assert encoder.strides == strides
    for height, width in ((64, 96), (160, 32)):
        images = torch.rand(2, 3, height, width)
        levels = encoder(images)
        assert [tuple(level.shape) for level in levels] == [
            (2, channels, height // stride, width // stride)
            for channels, stride in zip(encoder.channels, strides, strict=True)
        ]
        channels_last = name.startswith("swin")
        for level, theirs in zip(levels, encoder.body(images), strict=True):
            assert torch.equal(level, torch.einsum("bhwc->bchw", theirs) if channels_last else theirs)


def test_the_layout_is_asked_and_not_guessed() -> None:
    """A level of as many rows as channels, which a guess from the shape takes for channels first."""
    encoder = TimmEncoder("swin_tiny_patch4_window7_224").eval()
    images = torch.rand(1, 3, 384, 32)
    assert encoder(images)[0].shape == (1, 96, 96, 8)
    assert torch.equal(encoder(images)[0], torch.einsum("bhwc->bchw", encoder.body(images)[0]))


class Levels(nn.Module):
    """Two levels, channels last, of a network that states what it is told."""

    def __init__(self, output_fmt: str) -> None:
        super().__init__()
        self.output_fmt = output_fmt
        self.feature_info = timm.models.FeatureInfo(
            [{"num_chs": c, "reduction": o, "module": ""} for c, o in ((8, 4), (16, 8))], (0, 1)
        )

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [
            images.new_ones(len(images), images.shape[2] // o, images.shape[3] // o, c) for c, o in ((8, 4), (16, 8))
        ]


@pytest.mark.parametrize("stated", ["NCHW", "NHWC"])
@pytest.mark.parametrize("size", [(32, 64), (32, 32), (64, 128), (48, 80)])  # as many rows as channels, in one level
def test_the_layout_is_what_comes_out_even_if_the_network_says_otherwise(stated: str, size: tuple[int, int]) -> None:
    levels = TimmEncoder(Levels(stated))(torch.zeros(3, 1, *size))
    assert [x.shape for x in levels] == [(3, 8, size[0] // 4, size[1] // 4), (3, 16, size[0] // 8, size[1] // 8)]


def test_hooks_of_timm_that_state_a_wrong_layout() -> None:
    settings = {"depth": 4, "global_attn_indexes": (3,), "features_only": True, "feature_cls": "hook"}
    with torch.device("meta"):
        encoder = TimmEncoder(timm.create_model("samvit_base_patch16", **settings))
    assert encoder.layout == "NCHW"
    assert encoder.body(torch.empty(2, 3, 1024, 1024, device="meta"))[0].shape == (2, 64, 64, 768)
    assert [x.shape for x in encoder(torch.empty(2, 3, 1024, 1024, device="meta"))] == [(2, 768, 64, 64)] * 3


ONE_SIZE = ["beit_base_patch16_224", "hiera_tiny_224", "maxvit_tiny_tf_224", "volo_d1_224", "gcvit_xxtiny"]


@pytest.mark.parametrize("name", ONE_SIZE)
def test_a_network_of_one_size_is_built_for_another(name: str) -> None:
    with torch.device("meta"):
        encoder = TimmEncoder(timm.create_model(name, features_only=True, img_size=448))
    levels = encoder(torch.empty(2, 3, 448, 448, device="meta"))
    expected = zip(encoder.channels, encoder.strides, strict=True)
    assert [tuple(x.shape) for x in levels] == [(2, c, 448 // stride, 448 // stride) for c, stride in expected]


def test_the_table_of_the_docs_has_all_names() -> None:
    lines = timm_table.FILE.read_text().splitlines()
    assert [line.split("`")[1] for line in lines[2:]] == list(timm_table.NAMES)
    assert len(lines) - 2 == 25


QUICK = ["resnet18", "hrnet_w18_small", "mambaout_femto", "hiera_tiny_224", "vit_small_patch14_dinov2"]


@pytest.mark.parametrize("name", QUICK)  # tests/verify.py makes all rows
def test_the_table_of_the_docs(name: str) -> None:
    assert timm_table.row(name) in timm_table.FILE.read_text().splitlines()


def test_a_model_of_ones_own() -> None:
    body = timm.create_model("resnet18", features_only=True, out_indices=(1, 3), in_chans=5)
    encoder = TimmEncoder(body)
    assert encoder.body is body
    assert (encoder.channels, encoder.strides) == ((64, 256), (4, 16))
    assert [level.shape[1] for level in encoder(torch.rand(2, 5, 32, 32))] == [64, 256]
    named = TimmEncoder(timm.create_model("resnet18", features_only=True, feature_cls="dict"))
    assert len(named(torch.rand(2, 3, 32, 32))) == 5


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_of_a_file(name: str, ending: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    other, file = timm.create_model(name), tmp_path / f"weights.{ending}"
    if ending == "pth":
        torch.save({"state_dict": other.state_dict()}, file)
    else:
        pytest.importorskip("safetensors.torch").save_file(other.state_dict(), file)
    torch.manual_seed(1)
    encoder = TimmEncoder(name, weights=file)
    after = torch.rand(1)
    kept = {key.replace("_", "."): x for key, x in other.state_dict().items()}
    for key, tensor in encoder.body.state_dict().items():
        assert torch.equal(tensor, kept[key.replace("_", ".")]), key
    torch.manual_seed(1)
    timm.create_model(name, features_only=True)
    assert torch.equal(after, torch.rand(1))  # what is drawn next does not depend on where weights come from


def test_a_file_with_a_classifier_is_worth_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "weights.pth")
    TimmEncoder("tf_efficientnet_lite0", weights=tmp_path / "weights.pth")
    assert not caplog.records
    logging.getLogger("timm.models._builder").warning("Unexpected keys: what others load is theirs")
    assert len(caplog.records) == 1


def test_two_scales_around_it() -> None:
    torch.manual_seed(0)
    encoder = TimmEncoder("convnext_atto", in_channels=4)
    head = ScaleAttentionHead(encoder.channels, 1, embed_dims=8)
    decoder = DAFormerHead(encoder.channels, 5, embed_dims=8)
    model = MultiResSegmenter(encoder, decoder, head, detail_size=(64, 64))
    out = model(torch.rand(2, 4, 128, 128))
    out.logits.mean().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    assert model.predict(torch.rand(1, 4, 100, 150), output="labels").shape == (1, 100, 150)


def saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "file.pth")
    return folder / "file.pth"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda _: TimmEncoder("resnet-none"),
            r"^encoder 'resnet-none' cannot be built \(timm.list_models.*: Unknown model",
        ),
        (lambda _: TimmEncoder("owner/name"), r"^encoder 'owner/name' cannot be built .*Use 'hf-hub:owner/name'"),
        (lambda _: TimmEncoder(timm.create_model("resnet18")), r"got ResNet; pass what .*features_only=True\) built$"),
        (lambda _: TimmEncoder(nn.Identity()), r"must be a name of timm or a model with levels, got Identity; pass"),
        (lambda _: TimmEncoder(None), r"must be a name of timm or a model with levels, got NoneType; pass"),
        (lambda _: TimmEncoder(nn.Identity(), in_channels=4), "^weights and in_channels are for a name; give them to"),
        (lambda _: TimmEncoder("resnet18", in_channels=0), "^in_channels must be a positive int, got 0$"),
        (
            lambda path: TimmEncoder("resnet18", weights=path / "none.pth"),
            r"none\.pth: no such file; no file of weights",
        ),
        (lambda path: TimmEncoder("resnet18", weights=saved(path, [1])), "must hold a dictionary of tensors, got list"),
        (
            lambda path: TimmEncoder("resnet18", weights=saved(path, timm.create_model("resnet10t").state_dict())),
            r"^encoder 'resnet18' cannot be built .*: Error\(s\) in loading state_dict for ResNet: ",
        ),
        (
            lambda path: TimmEncoder("convnext_atto", weights=saved(path, {"a": torch.zeros(1)})),
            r"file\.pth: no weights of encoder 'convnext_atto': it leaves stem_0\.weight and 39 others random",
        ),
        (
            lambda _: TimmEncoder("vit_tiny_patch16_224")(torch.rand(1, 3, 40, 32)),
            r"^images of \(40, 32\) do not fit this encoder \(Input height \(40\) should be divisible by patch size",
        ),
        (
            lambda _: TimmEncoder(
                timm.create_model("vit_tiny_patch16_224", depth=3, features_only=True, feature_cls="hook", img_size=32)
            )(torch.rand(1, 3, 32, 32)),
            r"^levels must be maps of \(192, 192, 192\) channels, as timm states, got \[\(1, 5, 192\).*'getter'$",
        ),
        (lambda _: TimmEncoder("resnet18")(torch.rand(1, 4, 32, 32)), r"images must be float \(B, 3, H, W\), got"),
        (
            lambda _: TimmEncoder("resnet18")(torch.zeros(1, 3, 32, 32).byte()),
            r"images must be float .*, got torch.uint8",
        ),
    ],
)
def test_mistakes(call: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        call(tmp_path)


def test_timm_is_needed_for_a_name_only() -> None:
    code = (
        "import sys; sys.modules['timm'] = None\n"
        "from hrda_lib.models import TimmEncoder\n"
        "try: TimmEncoder('resnet18')\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "encoder 'resnet18' needs timm: pip install timm", done.stderr
