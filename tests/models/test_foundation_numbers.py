"""Foundation models against numbers of published code: VFM-UDA's two arms, and the token distillation of VFM-UDA++.

Recipe: tue-mps/vfm-uda e154d8f and tue-mps/vfm-uda-plusplus effbb03 around a DINOv2 of width 48, native grid 4 x 4, 3
heads, 4 blocks (the distillation with 4 registers and 2 blocks), 5 classes; images of 140 x 140 pixels, windows of
70. Every weight and image is a function of its name (``uniform``); crops, token masks and class choices are given. Two
steps of each arm: lr 5e-5 * sqrt(2), encoder x 0.1, layer decay 0.9, weight decay 0.01, warm-up of 4 steps, threshold
0.4. Computed in float64; kept in float64 at every 7th pixel, or in float32.
"""

import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from hrda_lib import CropBox, EMATeacher, MultiResSegmenter, SelfTraining, TokenDistillation
from hrda_lib.models import ViTFeatures
from hrda_lib.optim import parameter_groups

timm = pytest.importorskip("timm", reason="needs the extra timm")
load_file = pytest.importorskip("safetensors.torch", reason="needs safetensors").load_file

DATA = Path(__file__).parents[1] / "data"
NUMBERS, SCALARS = load_file(DATA / "vfm.safetensors"), json.loads((DATA / "vfm.json").read_text())
WIDTH, CLASSES, SIZE, WINDOW = 48, 5, 140, 70


def uniform(name: str, shape: tuple[int, ...]) -> Tensor:
    """float64 in [-1, 1), by name."""
    bits = np.random.PCG64([0, zlib.crc32(name.encode())])
    return torch.from_numpy(2 * np.random.Generator(bits).random(shape) - 1)


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    u = uniform(name, shape)
    if name.endswith(("pos_embed", "cls_token", "register_tokens", "mask_token")):
        return 0.5 * u
    if len(shape) > 1:
        return 1.7 * u / np.prod(shape[1:]) ** 0.5
    return 0.1 * u if name.endswith("bias") else 1 + 0.2 * u


def filled(module: nn.Module, published: Callable[[str], str]) -> Any:
    with torch.no_grad():
        for name, parameter in module.double().named_parameters():
            parameter.copy_(weight(published(name), tuple(parameter.shape)))
    return module


class MaskedPatches(nn.Module):
    """A patch embedding that puts a learned token in the place of those that wait in ``masks``."""

    def __init__(self, patches: nn.Module) -> None:
        super().__init__()
        self.patches, self.mask_token, self.masks = patches, nn.Parameter(torch.zeros(1, WIDTH)), []
        self.patch_size, self.grid_size = patches.patch_size, patches.grid_size
        self.dynamic_feat_size = patches.dynamic_feat_size

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x)
        if self.masks:
            tokens = torch.where(self.masks.pop(0).view(tokens.shape[:3])[..., None], self.mask_token[0], tokens)
        return tokens


def encoder() -> ViTFeatures:
    settings = {"img_size": 56, "embed_dim": WIDTH, "depth": 4, "num_heads": 3, "dynamic_img_size": True}
    vit = timm.create_model("vit_small_patch14_dinov2", num_classes=0, **settings)
    vit.patch_embed = MaskedPatches(vit.patch_embed)
    return ViTFeatures(vit, out_indices=1, pos_embed="dinov2")


def name_in_encoder(name: str) -> str:
    renamed = name.replace("encoder.body.", "encoder.").replace("patch_embed.patches.", "patch_embed.")
    return renamed.replace("patch_embed.mask_token", "mask_token")


class Last(nn.Module):
    def forward(self, features: list[Tensor]) -> Tensor:
        return features[-1]


class ChannelNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Generic(nn.Module):
    """One scale: images resized to 1.1 times their size in whole patches, a light head, logits of the images' size."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.encoder, self.inside, half, quarter = encoder(), inside, WIDTH // 2, WIDTH // 4
        self.upscale = nn.Sequential(
            Last(),
            nn.ConvTranspose2d(WIDTH, half, 2, stride=2, bias=False),
            ChannelNorm(half, eps=1e-6),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2, bias=False),
            ChannelNorm(quarter, eps=1e-6),
            nn.Conv2d(quarter, quarter, 3, padding=1, bias=False),
            ChannelNorm(quarter, eps=1e-6),
        )
        self.out = nn.Conv2d(quarter, CLASSES, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        inside = interpolate(images, size=(self.inside, self.inside), mode="bilinear")
        return interpolate(self.out(self.upscale(self.encoder(inside))), size=images.shape[-2:], mode="bilinear")


def name_in_generic(name: str) -> str:
    part, _, rest = name.partition(".")
    index, _, rest = rest.partition(".")
    return f"upscale.{int(index) - 1}.{rest}" if part == "upscale" else name_in_encoder(name)


def arm() -> MultiResSegmenter:
    def head() -> nn.Module:
        up = nn.Upsample(scale_factor=4, mode="bilinear")
        return nn.Sequential(Last(), nn.Conv2d(WIDTH, 16, 1), up, nn.ReLU(), nn.Conv2d(16, CLASSES, 1))

    model = MultiResSegmenter(encoder(), head(), head(), detail_size=WINDOW, output_stride=None, multiple_of=14)
    return filled(model, name_in_arm)


def name_in_arm(name: str) -> str:
    if name.startswith("encoder"):
        return name_in_encoder(name)
    part, index, rest = name.split(".")
    return f"{'seg_head' if part == 'decoder' else 'attn_head'}.{int(index) - 1}.{rest}"


def pictures(name: str, size: int = SIZE) -> Tensor:
    side = size // 5
    flat = uniform(f"{name}.flat", (2, 3, 5, 5)).repeat_interleave(side, 2).repeat_interleave(side, 3)
    return (0.7 * flat + 0.3 * uniform(name, (2, 3, size, size))) / 2 + 0.5


def labels(name: str) -> Tensor:
    ids = ((uniform(name, (2, 7, 7)) + 1) / 2 * (CLASSES + 0.5)).floor().long()
    ids[ids == CLASSES] = 255
    return ids.repeat_interleave(SIZE // 7, 1).repeat_interleave(SIZE // 7, 2)


def normalized(x: Tensor) -> Tensor:
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], dtype=torch.float64).view(2, 1, 3, 1, 1)
    return (x - mean) / std


def near(ours: Any, theirs: Any, tolerance: float) -> None:
    """Equal, relative to the largest of theirs."""
    got, wanted = torch.as_tensor(ours, dtype=torch.float64), torch.as_tensor(theirs, dtype=torch.float64)
    torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance * wanted.abs().max().item())


@torch.no_grad()
def test_features_and_logits() -> None:
    network, images = filled(Generic(70), name_in_generic).eval(), pictures("light", 70)
    near(network.encoder(images)[-1], NUMBERS["light.features"], 1e-12)
    near(network(images)[..., ::7, ::7], NUMBERS["light.logits"], 1e-12)


@torch.no_grad()
def test_two_scales() -> None:
    model, images = arm().eval(), pictures("hrda")
    crop, whole = model(images, CropBox(35, 21, 70, 70)), model(images, detail="windows")
    near(crop.logits[..., ::7, ::7], NUMBERS["hrda.fused"], 1e-12)
    near(crop.detail_logits[..., ::7, ::7], NUMBERS["hrda.detail"], 1e-12)
    near(crop.logits.square().sum(), SCALARS["hrda.fused.square"], 1e-12)
    # there the attention is upsampled before the sigmoid at test time
    near(whole.logits[..., ::7, ::7], NUMBERS["hrda.inference"], 1e-4)


def flipped(teacher: EMATeacher, images: Tensor) -> Tensor:
    """The mean of the softmax on an image and on its mirror image, as logits."""
    mirrored = teacher(images.flip(-1)).flip(-1)
    return ((teacher(images).softmax(1) + mirrored.softmax(1)) / 2).log()


# of the arm with two scales: its order of sigmoid and upsampling labels 0.04 % of pixels otherwise
@pytest.mark.parametrize(("name", "wrong", "tolerance"), [("generic", 0.0, 1e-7), ("hrda", 1e-3, 5e-5)])
def test_two_steps(name: str, wrong: float, tolerance: float) -> None:
    two_scales = name == "hrda"
    student = arm() if two_scales else filled(Generic(SIZE), name_in_generic)
    published = name_in_arm if two_scales else name_in_generic
    # in VFM-UDA the average takes buffers in the one arm, and leaves them in the other
    teacher = EMATeacher(student, buffers="keep" if two_scales else "average")
    labelling: Callable[[Tensor], Any] = (
        (lambda x: teacher(x, detail="windows")) if two_scales else lambda x: flipped(teacher, x)
    )
    training = SelfTraining(student, labelling, threshold=0.4)
    optimizer = torch.optim.AdamW(
        parameter_groups(student, lr=5e-5 * math.sqrt(2) * 0.1, head_factor=10, weight_decay=0.01, layer_decay=0.9)
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    boxes = [CropBox(0, 70, 70, 70), CropBox(35, 21, 70, 70), CropBox(14, 14, 70, 70)] if two_scales else [None] * 3
    for step in range(2):
        at = f"{name}{step}"
        factor = 1e-3 + (1 - 1e-3) * step / 3  # their warm-up
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        got = sorted({group["lr"] for group in optimizer.param_groups}, reverse=True)
        assert got == pytest.approx(SCALARS[f"{name}.lr"][step], rel=1e-12)
        source, ids = normalized(pictures(f"s{step}")), labels(f"sy{step}")
        target, valid = normalized(pictures(f"t{step}")), torch.ones(2, SIZE, SIZE, dtype=torch.bool)
        valid[:, :4], valid[:, -35:] = False, False
        optimizer.zero_grad()
        label, share = training.pseudo_label(target, valid=valid)
        assert (label != NUMBERS[f"{at}.pseudo_label"].long()).double().mean().item() <= wrong
        near(share.max(), SCALARS[f"{at}.weight"], 1e-3 if two_scales else 1e-7)

        losses = {}
        loss, _ = training.source(source, ids, box=boxes[0])
        if not two_scales:  # that arm divides by valid pixels, the other one by all
            loss = loss * ids.numel() / (ids != 255).sum()
        loss.backward()
        losses["source"] = loss.item()
        choices = [torch.unique(ids)[torch.tensor(chosen)].tolist() for chosen in SCALARS[f"{at}.choices"]]
        loss, _ = training.mixed(source, ids, target, label, share, classes=choices, box=boxes[1])
        loss.backward()
        losses["mixed"] = loss.item()
        count, passes = (25, 2) if two_scales else (100, 1)
        masks = [uniform(f"{name}.token{i}", (2, count)) < 0.4 for i in range(passes)]
        student.encoder.body.patch_embed.masks = masks
        everything = torch.ones(2, 1, SIZE, SIZE, dtype=torch.bool)
        loss, _ = training.masked(target, label, share, mask=everything, box=boxes[2])
        loss.backward()
        losses["masked"] = loss.item()
        near(list(losses.values()), [SCALARS[f"{at}.losses"][term] for term in losses], tolerance)
        norms = {published(n): p.grad.norm().item() for n, p in student.named_parameters() if p.grad is not None}
        assert norms.keys() == SCALARS[f"{at}.grad_norm"].keys()
        near([norms[n] for n in norms], [SCALARS[f"{at}.grad_norm"][n] for n in norms], tolerance)
        optimizer.step()
        teacher.update(student)
        for kind, module in (("parameter_sum", student), ("ema_sum", teacher.module)):
            sums = {published(n): p.sum().item() for n, p in module.named_parameters()}
            near([sums[n] for n in sums], [SCALARS[f"{at}.{kind}"][n] for n in sums], 1e-6)


def test_token_distillation() -> None:
    settings = {"img_size": 56, "embed_dim": WIDTH, "depth": 2, "num_heads": 3, "dynamic_img_size": True}
    reference = ViTFeatures(
        timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, **settings), out_indices=1
    )
    distillation = TokenDistillation(filled(reference, lambda name: registers(name)), 24, weight=1.0).double()
    filled(distillation.project, lambda name: f"feat_project.{name}")
    with torch.no_grad():  # timm has the class token's position in the token
        body, both = distillation.reference.body, weight("encoder.pos_embed", (1, 17, WIDTH))
        body.pos_embed.copy_(both[:, 1:])
        body.cls_token.copy_(weight("encoder.cls_token", (1, 1, WIDTH)) + both[:, :1])
    features = uniform("features", (1, 24, 10, 10)).requires_grad_()
    images = uniform("image", (1, 3, 140, 140))
    with torch.no_grad():
        tokens = distillation.reference(interpolate(images, size=(406, 406), mode="bilinear"))[-1]
    near(tokens[..., ::4, ::4], NUMBERS["tokens.reference"], 1e-7)
    loss = distillation(features, images)
    loss.backward()
    near(loss.detach(), SCALARS["tokens.loss"], 1e-12)
    near(features.grad, NUMBERS["tokens.features.grad"], 1e-6)


@pytest.mark.parametrize(
    ("grid", "expected"), [((5, 5), "pos_embed"), ((4, 4), "pos_embed_native"), ((5, 8), "pos_embed_tall")]
)
@torch.no_grad()
def test_position_embedding(grid: tuple[int, int], expected: str) -> None:
    near(positions(grid), NUMBERS[f"light.{expected}"], 1e-12)


def positions(grid: tuple[int, int]) -> Tensor:
    """What the encoder adds to tokens of 0 on a grid: the class token's row first."""
    vit = filled(encoder(), name_in_encoder_alone).eval().body
    added: list[Tensor] = []
    vit.pos_drop.register_forward_hook(lambda _, given, __: added.append(given[0]))
    for parameter in (*vit.patch_embed.parameters(), vit.cls_token):
        parameter.zero_()
    ViTFeatures(vit, out_indices=1, pos_embed="dinov2")(torch.zeros(1, 3, 14 * grid[0], 14 * grid[1]).double())
    return added[0]


def name_in_encoder_alone(name: str) -> str:
    return name_in_encoder(f"encoder.{name}")


def registers(name: str) -> str:
    return name.replace("body.", "encoder.").replace("reg_token", "register_tokens")
