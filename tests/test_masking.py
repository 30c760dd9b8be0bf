import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hrda_lib import patch_mask


def edges(mask: Tensor, dim: int) -> list[int]:
    """Where the mask of any image changes along ``dim``: with many images, every edge of the grid."""
    changes = mask.diff(dim=dim)
    others = [d for d in range(4) if d != dim]
    return (changes.any(others[2]).any(others[1]).any(others[0]).nonzero().flatten() + 1).tolist()


def expected_edges(side: int, blocks: int) -> list[int]:
    """Pixel i belongs to block floor(i * blocks / side): an edge is the first pixel of a block."""
    return [-(-k * side // blocks) for k in range(1, blocks)]


@pytest.mark.parametrize(
    ("side", "block", "blocks"),
    [
        (1080, 64, 17),
        (1024, 64, 16),
        (512, 64, 8),
        (360, 64, 6),
        (480, 64, 8),
        (160, 64, 2),  # 2.5: Python rounds a half to the even number, as the released code does
        (96, 64, 2),
        (63, 32, 2),
        (30, 64, 1),
        (7, 1, 7),
        (123, 41, 3),
    ],
)
def test_grid_of_rounded_block_counts(side: int, block: int, blocks: int, generator: torch.Generator) -> None:
    for size, dim in (((side, block), 2), ((block, side), 3)):
        mask = patch_mask(size, batch=40, ratio=0.5, block=block, generator=generator)
        assert mask.shape == (40, 1, *size)
        assert mask.dtype == torch.bool
        assert edges(mask, dim) == expected_edges(side, blocks)
        assert edges(mask, 5 - dim) == []


@pytest.mark.parametrize("ratio", [0.3, 0.7, 0.9])
def test_share_that_is_kept(ratio: float, generator: torch.Generator) -> None:
    mask = patch_mask(128, batch=64, ratio=ratio, block=8, generator=generator)  # 16384 blocks
    assert abs(mask.float().mean().item() - (1 - ratio)) < 0.02  # five standard deviations


def test_default_settings_are_those_of_the_paper(generator: torch.Generator) -> None:
    mask = patch_mask((512, 512), batch=64, generator=generator)
    assert abs(mask.float().mean().item() - 0.3) < 0.04
    assert edges(mask, 2) == edges(mask, 3) == list(range(64, 512, 64))
    assert patch_mask(64).shape == (1, 1, 64, 64)


def test_blocks_and_images_are_drawn_apart(generator: torch.Generator) -> None:
    mask = patch_mask(16, batch=2000, ratio=0.5, block=8, generator=generator)[:, 0, ::8, ::8].flatten(1).float()
    correlation = torch.corrcoef(mask.T) - torch.eye(4)
    assert correlation.abs().max() < 0.1
    assert torch.corrcoef(torch.stack([mask[:-1].flatten(), mask[1:].flatten()]))[0, 1].abs() < 0.1


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.integers(1, 3))
def test_ratio_0_keeps_and_1_hides_everything(height: int, width: int, block: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    settings = {"batch": batch, "block": block, "generator": generator}
    assert patch_mask((height, width), ratio=0, **settings).all()
    assert not patch_mask((height, width), ratio=1, **settings).any()


def test_image_smaller_than_a_block_is_one_block(generator: torch.Generator) -> None:
    mask = patch_mask((10, 20), batch=50, ratio=0.5, generator=generator).flatten(1)
    assert torch.equal(mask.all(1), mask.any(1))
    assert 0 < mask.all(1).sum() < 50


def test_same_generator_same_mask() -> None:
    first, second, other = (patch_mask(256, block=16, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    torch.manual_seed(3)
    first = patch_mask(256, block=16)
    torch.manual_seed(3)
    assert torch.equal(first, patch_mask(256, block=16))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (0, 8)}, "size must be a positive int or two of them (height, width), got (0, 8)"),
        ({"size": (8, 8, 8)}, "size must be a positive int or two of them (height, width), got (8, 8, 8)"),
        ({"ratio": 1.1}, "ratio must be in [0, 1], got 1.1"),
        ({"ratio": -0.1}, "ratio must be in [0, 1], got -0.1"),
        ({"block": 0}, "block must be a positive int, got 0"),
        ({"batch": 0}, "batch must be a positive int, got 0"),
    ],
    ids=["size 0", "three sizes", "ratio above", "ratio below", "block", "batch"],
)
def test_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        patch_mask(**({"size": (8, 8)} | settings))
