"""transformers: Segformer, whose answers are objects, and DINOv2 as a backbone with a patch of 14."""

from typing import Any

import pytest
import torch
import written_out
from integration_pages import check_hrda, check_plain, check_predict, check_windows, glue, run_page
from written_out import Parts, batches

from hrda_lib import confidence_weighted_ce

transformers = pytest.importorskip("transformers", reason="the extra integrations is not installed")
PAGE = "transformers"


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    return run_page(PAGE)


def of_segformer(student: Any) -> Parts:
    body = student.encoder.module
    return Parts(
        lambda x: body(pixel_values=x, output_hidden_states=True).hidden_states,
        student.decoder,
        lambda f: student.attention(f).sigmoid(),
    )


def of_dinov2(student: Any) -> Parts:
    body = student.encoder.module
    return Parts(
        lambda x: body(x).feature_maps,
        student.decoder,
        lambda f: student.attention(f).sigmoid(),
        stride=None,
        detail=28,
        step=14,
    )


def test_lines_of_glue() -> None:
    assert glue(PAGE) == {"one scale": 1, "two scales": 4, "DINOv2": 3}


def test_self_training_is_that_written_out(page: dict[str, Any]) -> None:
    check_plain(page["plain"], lambda s: lambda x: s.module(pixel_values=x).logits, batches(2, classes=5))


def test_windows_at_an_odd_size(page: dict[str, Any]) -> None:
    network = page["plain"]
    check_windows(network, lambda x: network.module(x).logits, torch.randn(1, 3, 50, 131), 64, (64, 131))


def test_hrda_is_that_written_out(page: dict[str, Any]) -> None:
    check_hrda(page["hrda"], of_segformer, batches(2, classes=5))


def test_hrda_of_dinov2_is_that_written_out(page: dict[str, Any]) -> None:
    check_hrda(page["hrda_dinov2"], of_dinov2, batches(2, classes=5, side=56, box=28, cell=2))


def test_hrda_predicts_at_an_odd_size(page: dict[str, Any]) -> None:
    check_predict(page["hrda"], of_segformer(page["hrda"]), torch.randn(1, 3, 50, 131), 64, (64, 136))


def test_hrda_of_dinov2_predicts_at_an_odd_size(page: dict[str, Any]) -> None:
    student = page["hrda_dinov2"]
    check_predict(student, of_dinov2(student), torch.randn(1, 3, 50, 131), 56, (56, 140))


def test_their_loss_is_ours_over_valid_pixels() -> None:
    sizes = {"depths": [1] * 4, "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 1, 2, 4]}
    config = transformers.SegformerConfig(**sizes, num_labels=5, decoder_hidden_size=8, semantic_loss_ignore_index=255)
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    labels = written_out.batches(1, classes=5)[0].labels
    answer = model(pixel_values=torch.randn(2, 3, 64, 64), labels=labels)
    torch.testing.assert_close(confidence_weighted_ce(answer.logits, labels, normalize="valid"), answer.loss)


def test_a_pretrained_model_comes_in_eval_mode(page: dict[str, Any], tmp_path: Any) -> None:
    page["averaged"].save_pretrained(tmp_path)
    assert not transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path).training
