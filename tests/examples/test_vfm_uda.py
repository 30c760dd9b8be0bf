"""Self-training around a plain ViT, shortened: tiny networks, a few steps on small streets."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts import main, metrics, run_together, write_streets
from torch import Tensor, nn

import support.arms
import support.foundation
import vfm_uda
from hrda_lib import EMATeacher, MultiResSegmenter
from hrda_lib.checkpointing import seed_step
from hrda_lib.data import open_dataset
from hrda_lib.lora import LoRALinear
from support.command_line import FOUNDATION
from support.domains import open_domains
from support.foundation import OnePass, VitSpec, adapt_by_lora, merge, mirrored, vit_of_timm, vit_spec
from support.run_folder import load
from vfm_uda import ARMS, Settings

timm = pytest.importorskip("timm", reason="needs the extra timm")

TINY = "vit_tiny_patch16_224"
SMALL = ["--crop", 64, 128, "--depth", 4, "--head", 8, "--rank", 2, "--min-pixels", 20, "--min-crop-pixels", 10]
ALL = ("source", "control", "recipe", "full", "equal_flops")


def spec(**changes: Any) -> VitSpec:
    settings = {"classes": ("a", "b", "c"), "detail_size": (32, 32), "encoder": TINY, "depth": 4, "head": 8}
    return VitSpec(**{**settings, **changes})


def parse(*arguments: Any) -> Settings:
    return vfm_uda.parse([*map(str, arguments)])[0]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_streets(tmp_path_factory.mktemp("toy") / "data", train=3, val=2)


def options(toy: Path, out: Path, *arguments: Any) -> list[Any]:
    folders = ["--gta", toy / "gta", "--cityscapes", toy / "cityscapes", "--out", out]
    recipe = [] if "--recipe" in arguments else ["--recipe", "hrda_vfm_lora", "--lr", 1e-3, "--precision", "fp32"]
    fitting = ["--source-size", 0, 0, "--margins", 0, 0, 0, 0, "--encoder", TINY, *SMALL]
    return [*folders, *recipe, *fitting, *arguments]


def start(toy: Path, out: Path, *arguments: Any) -> int:
    return main("vfm_uda.py", *options(toy, out, *arguments))


@pytest.fixture(scope="module")
def finished(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "vfm"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_arms", "draw_classes", "draw_curves"):
            patch.setattr(support.arms, name, lambda *_: None)
        assert start(toy, out, "--warmup", 2, "--steps", 2, "--threshold", 0.05, "--arms", *ALL) == 0
    return out / "seed1"


def test_the_arms_differ_in_what_their_row_says(finished: Path) -> None:
    terms = {arm: {x for x in metrics(finished / arm)[0] if x.startswith("loss_")} for arm in ALL}
    assert terms["source"] == terms["control"] == {"loss_source"}
    assert all(terms[arm] == {"loss_source", "loss_mixed", "loss_masked"} for arm in ALL[2:])
    results = {arm: json.loads((finished / arm / "result.json").read_text()) for arm in ALL}
    assert [results[arm]["settings"]["changes"] for arm in ALL] == [{"rank": 0}, {}, {}, {"rank": 0}, {"scales": 1}]
    models = {arm: load(finished / arm) for arm in ALL}
    assert models["equal_flops"][1].scales == 1
    assert isinstance(models["equal_flops"][0], OnePass)
    begin = models["source"][0].state_dict()
    for arm in ("control", "recipe", "full"):
        weights = models[arm][0].state_dict()
        assert weights.keys() == begin.keys()  # a plain network: adapters are merged
        moved = {name for name, x in weights.items() if not torch.equal(x, begin[name])}
        frozen = [name for name in begin if name.startswith("encoder") and ".qkv.w" not in name and ".fc" not in name]
        assert "encoder.body.blocks.0.attn.qkv.weight" in moved
        assert {name in moved for name in frozen} == ({True} if arm == "full" else {False})


def test_the_teacher_is_kept_as_a_plain_network(finished: Path) -> None:
    student, teacher = (load(finished / "recipe", who)[0].state_dict() for who in ("student", "teacher"))
    begin, name = load(finished / "source")[0].state_dict(), "encoder.body.blocks.0.attn.qkv.weight"
    by_student, by_teacher = ((x[name] - begin[name]).norm() for x in (student, teacher))
    assert 0 < by_teacher < by_student


@pytest.mark.usefixtures("no_pictures")
def test_a_stopped_run_goes_on_as_if_it_had_not(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def until_two(seed: int, step: int, *others: Any, **named: Any) -> None:
        seed_step(seed, step, *others, **named)
        if step == 2:
            raise RuntimeError("out of luck")

    call = [toy, tmp_path / "a", "--steps", 3, "--threshold", 0.05]
    assert start(*call) == 0
    call[1] = tmp_path / "b"
    with monkeypatch.context() as patch:
        patch.setattr(vfm_uda, "seed_step", until_two)
        assert start(*call) == 1
    assert start(*call, "--resume") == 0
    runs = [tmp_path / x / "seed1" / "recipe" for x in "ab"]
    assert metrics(runs[0]) == metrics(runs[1])
    first, second = (load(run)[0].state_dict() for run in runs)
    assert all(torch.equal(x, second[name]) for name, x in first.items())


@pytest.mark.usefixtures("no_pictures")
def test_the_published_arm_starts(toy: Path, tmp_path: Path) -> None:
    few = ["--source", "gta", "cityscapes", "--labelled-target", 2, "--steps", 2, "--batch-size", 1, "--rank", 0]
    assert start(toy, tmp_path, "--recipe", "vfm_uda", *few, "--pos-embed", "own") == 0
    assert isinstance(load(tmp_path / "seed1" / "recipe")[0], OnePass)


@pytest.mark.usefixtures("no_pictures")
def test_bfloat16_and_recomputing(toy: Path, tmp_path: Path) -> None:
    assert start(toy, tmp_path, "--steps", 2, "--precision", "bf16", "--recompute", 1) == 0
    assert metrics(tmp_path / "seed1" / "recipe")[-1]["gradient"] > 0


def test_recipes_are_what_the_page_says() -> None:
    folders = ["--gta", "A", "--cityscapes", "B"]
    ours, theirs = (parse("--recipe", name, *folders) for name in FOUNDATION)
    assert parse(*folders) == ours
    for settings in (ours, theirs):
        assert (settings.arms, settings.warmup, settings.steps) == (("recipe",), 0, 40_000)
        assert (settings.ema_decay, settings.threshold, settings.per) == (0.999, 0.968, "batch")
        assert (settings.weight_decay, settings.lr_warmup, settings.mask_ratio) == (0.01, 1500, 0.7)
    assert (ours.scales, ours.rank, ours.crop, ours.batch_size, ours.lr) == (2, 32, (1036, 1036), 2, 1e-4)
    assert (theirs.scales, theirs.rank, theirs.crop, theirs.batch_size) == (1, 0, (1024, 1024), 8)
    assert theirs.lr * theirs.head_factor == pytest.approx(5e-5 * 8**0.5, rel=1e-5)
    assert (theirs.mirror, theirs.by_valid, ours.mirror, ours.by_valid) == (1, 1, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--recipe", "vfm_uda"], "--gta DIR is missing: the recipe needs real data"),
        (["--gta", "A"], "--cityscapes DIR is missing: the recipe needs real data"),
        (["--target", "acdc"], "the toy data are --source gta --target cityscapes"),
        (["--arms", "hrda"], "invalid choice: 'hrda' (choose from source, control, recipe, full, equal_flops)"),
        (["--warmup", 0], "--arms source is the warm-up, which takes --warmup 0 steps"),
        (["--weights", "no.pth", "--out", "OUT"], "no.pth: no such file; --weights is a state dict of timm's vit_tiny"),
        (["--encoder", "vit_tyni", "--out", "OUT"], "--encoder vit_tyni"),
    ],
    ids=["no data", "no target", "toy", "arm", "no warm-up", "no weights", "no encoder"],
)
def test_what_is_refused(arguments: list[Any], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("vfm_uda.py", *[tmp_path / "out" if x == "OUT" else x for x in arguments]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_of_a_file(suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state, file = vit_of_timm(TINY, depth=2).state_dict(), tmp_path / f"vit.{suffix}"
    if suffix == "pth":
        torch.save(state, file)
    else:
        pytest.importorskip("safetensors.torch").save_file(state, file)
    loaded = vit_of_timm(TINY, file, depth=2).state_dict()
    assert all(torch.equal(x, loaded[name]) for name, x in state.items())


def test_nothing_is_downloaded_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[dict[str, Any]]()
    monkeypatch.setattr(timm, "create_model", lambda name, **settings: asked.append(settings) or nn.Identity())
    vit_of_timm(TINY)
    vit_of_timm(TINY, support.foundation.DOWNLOAD)
    assert ["pretrained" in settings for settings in asked] == [False, True]
    arguments = vfm_uda.parse(["--pretrained"])[0], vfm_uda.parse(["--weights", "x"])[0], vfm_uda.parse([])[0]
    assert [settings.encoder_weights for settings in arguments] == ["pretrained", "x", ""]


def test_two_scales_have_whole_patches_and_cells() -> None:
    network = spec(encoder="vit_small_patch14_dinov2", detail_size=(28, 42)).build()
    assert isinstance(network, MultiResSegmenter)
    assert (network.output_stride, network.multiple_of, network.detail_size) == (3.5, (14, 14), (28, 42))
    assert network.train()(torch.rand(1, 3, 56, 84)).logits.shape == (1, 3, 16, 24)
    assert spec(encoder="vit_small_patch14_dinov2").cell == 28
    assert (spec().cell, spec(scales=1).cell, spec(patch=8).cell) == (32, 1, 16)


def test_one_pass_sees_whole_patches_of_a_larger_image() -> None:
    network = spec(encoder="vit_small_patch14_dinov2", scales=1, inside=1.1, detail_size=(32, 32)).build()
    assert isinstance(network, OnePass)
    sizes = list[Any]()
    network.encoder.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[-2:])))
    network(torch.rand(1, 3, 64, 64))
    assert sizes == [(70, 70)]
    sizes.clear()
    assert network.predict(torch.rand(1, 3, 64, 96)).shape == (1, 3, 64, 96)
    assert sizes == [(70, 70)] * 2  # windows of the crop's size
    assert int(1.1 * 1024) // 14 * 14 == 1120


def test_mirrored_labels() -> None:
    torch.manual_seed(0)
    network, x = spec(scales=1).build().eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        a, b = network(x).softmax(1), network(x.flip(-1)).softmax(1)
        expected = torch.stack([a, b.flip(-1)]).mean(0)
        torch.testing.assert_close(mirrored(network, x).exp(), expected)
        two = spec().build().eval()
        assert mirrored(two, torch.rand(1, 3, 64, 64)).exp().sum(1).sub(1).abs().max() < 1e-5


def test_merging_leaves_student_and_teacher_as_they_answer() -> None:
    torch.manual_seed(0)
    student, x = spec(scales=1).build(), torch.rand(1, 3, 32, 32)
    adapt_by_lora(student, 2)
    teacher = EMATeacher(student, share_frozen=True)
    with torch.no_grad():
        for layer in student.modules():
            if isinstance(layer, LoRALinear):
                layer.lora_up.normal_()
    teacher.update(student)
    student.eval()
    with torch.no_grad():
        before = student(x), teacher(x)
        merge(student, teacher)
        after = student(x), teacher(x)
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(old, new, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after[0], after[1], atol=1e-3)
    assert not any(isinstance(layer, LoRALinear) for layer in (*student.modules(), *teacher.modules()))


def test_without_adapters_all_is_trained() -> None:
    network = spec().build()
    adapt_by_lora(network, 0)
    assert all(parameter.requires_grad for parameter in network.parameters())
    adapt_by_lora(network, 2)
    trained = {name for name, x in network.named_parameters() if x.requires_grad and name.startswith("encoder")}
    assert trained
    assert all(".lora_" in name for name in trained)


def test_several_sources_and_a_few_labelled_target_images(toy: Path, tmp_path: Path) -> None:
    folders = {"gta": toy / "gta", "cityscapes": toy / "cityscapes"}

    def opened(source: Any, **more: Any) -> Any:
        return open_domains(source, "cityscapes", folders, tmp_path, seed=0, stats=None, on_error="raise", **more)

    one, both = opened("gta"), opened(("gta", "cityscapes"))
    assert len(one.source) == 3
    assert len(both.source) == len(both.counts) == 6
    few = opened(("gta",), labelled_target=2)
    assert len(few.source) == len(few.counts) == 5
    target = open_dataset(folders["cityscapes"], "train", kind="cityscapes")
    assert torch.equal(few.source[3].label, target[0].label)
    assert torch.equal(few.source.label(4), target[1].label)
    assert torch.equal(few.counts[4], target.label(1).flatten().bincount(minlength=256)[:19])
    assert len({one.key, both.key, few.key}) == 3
    with pytest.raises(ValueError, match="--labelled-target must be at most the target's 3 images, got 4"):
        opened("gta", labelled_target=4)


def test_the_source_loss_can_be_divided_by_labelled_pixels() -> None:
    torch.manual_seed(0)
    settings = replace(Settings(), depth=4, head=8, crop=(64, 64), rank=0)
    student = vit_spec(settings).build().eval()
    labels = torch.zeros(1, 64, 64, dtype=torch.int64)
    labels[:, 16:] = 255
    x = torch.rand(1, 3, 64, 64)
    losses = list[Tensor]()
    for by_valid in (0, 1):
        _, training, _, _ = vfm_uda.assemble(student, replace(settings, by_valid=by_valid))
        training.generator.manual_seed(0)
        losses.append(training.source(x, labels)[1]["fused"])
        weighted, _ = training.supervised(x, labels, torch.ones(1, 64, 64))
        assert weighted.isfinite()
    torch.testing.assert_close(losses[1], 4 * losses[0])


def test_a_switched_off_network_has_no_options_here() -> None:
    parser = argparse.ArgumentParser()
    support.foundation.add_vit(parser)
    assert vars(parser.parse_args([])) == {"encoder_weights": None, "cost": False}
    assert set(ARMS) == set(ALL)


def test_two_processes_adapt_as_one(toy: Path, tmp_path: Path) -> None:
    """No batch norm, so both see one batch."""
    found = []
    for count in (1, 2):
        arguments = ["--warmup", 2, "--steps", 3, "--arms", "source", "recipe", "--batch-size", 2]
        done = run_together(count, "vfm_uda.py", *options(toy, tmp_path / str(count), *arguments))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("next: python examples/predict.py") == 1
        folder = tmp_path / str(count) / "seed1" / "recipe"
        found.append([{k: x for k, x in line.items() if k not in ("seconds", "memory")} for line in metrics(folder)])
    assert len(found[0]) == 3
    for line, other in zip(*found, strict=True):
        assert "loss_masked" in line
        assert other == pytest.approx(line, rel=1e-3)
