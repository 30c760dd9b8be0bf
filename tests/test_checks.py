"""The checks that every room shares, where no room's own tests look."""

import re
from typing import Any

import pytest
import torch

from hrda_lib._checks import as_classes, at_least_float32, check_scale_and_stride, check_up_to, expect

IMAGES = torch.zeros(2, 3, 4, 5)
EMPTY = torch.zeros(0, 3, 4, 5)


@pytest.mark.parametrize(
    ("value", "shapes", "kind"),
    [
        (IMAGES, ("BKHW",), "float"),
        (IMAGES, (("B", 3, "H", "W"),), "float"),
        (IMAGES, ((2, 3, 4, 5),), torch.float32),
        (IMAGES, ("BHW", IMAGES.shape), ""),
        (EMPTY, (EMPTY.shape,), "float"),  # a size that is asked for may be 0
        (IMAGES[0].byte(), ("BHW",), "uint8 or int64"),
        (IMAGES[0].long(), ("BHW",), "uint8 or int64"),
        (torch.tensor(1.0), ((),), "float"),
    ],
)
def test_what_fits(value: Any, shapes: Any, kind: Any) -> None:
    expect("x", value, *shapes, kind=kind)


@pytest.mark.parametrize(
    ("value", "shapes", "settings", "message"),
    [
        (None, ("BHW",), {}, "x must be a tensor, got NoneType; see torch.from_numpy"),
        (IMAGES, ("BHW",), {}, "x must be (B, H, W), got (2, 3, 4, 5)"),
        (IMAGES, (("B", 4, "H", "W"),), {"kind": "float"}, "x must be float (B, 4, H, W), got torch.float32 (2"),
        (IMAGES.long(), ("BKHW",), {"kind": "float"}, "x must be float (B, K, H, W), got torch.int64 (2, 3, 4, 5)"),
        (EMPTY, ("BKHW",), {"kind": "float"}, "x must be float (B, K, H, W) and not empty, got torch.float32 (0"),
        (IMAGES, ((2, 3), "BHW"), {"like": "y"}, "x must be (2, 3) or (B, H, W) like y, got (2, 3, 4, 5)"),
        (IMAGES, ((2,),), {"hint": "one an image"}, "x must be (2,), got (2, 3, 4, 5); one an image"),
        (IMAGES, ("BKHW",), {"kind": torch.bool}, "x must be bool (B, K, H, W), got torch.float32 (2, 3, 4, 5)"),
        (IMAGES, ("BKHW",), {"kind": "uint8 or int64"}, "x must be uint8 or int64 (B, K, H, W), got torch.float32"),
    ],
)  # fmt: skip
def test_what_does_not_fit(value: Any, shapes: Any, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        expect("x", value, *shapes, **settings)


def test_expect_is_traced_without_a_break() -> None:
    def double(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        expect("x", x, "BCHW", (2, "H"), kind="float", like="y", hint="z")
        expect("mask", mask, x.shape, kind=torch.bool)
        return at_least_float32(x) * 2

    torch.compiler.reset()
    compiled = torch.compile(double, backend="eager", fullgraph=True)
    for size in (4, 5, 6):  # the third is traced with sizes that are symbols
        x = torch.rand(1, 2, size, size + 1)
        assert torch.equal(compiled(x, x > 0), 2 * x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: as_classes([], 3, 255), "classes must be ids in [0, 3), at least one, got []"),
        (lambda: as_classes((0, 3), 3, 255), "classes must be ids in [0, 3), at least one, got [0, 3]"),
        (lambda: check_up_to(1, share=0.5, other=1.5), "other must be in [0, 1], got 1.5"),
        (lambda: check_up_to(1, share=float("nan")), "share must be in [0, 1], got nan"),
        (lambda: check_scale_and_stride(0.5, 4), "scale must be at least 1 and finite, got 0.5"),
        (lambda: check_scale_and_stride(2, 0.5), "output_stride must be a number in [1, 4096], got 0.5"),
    ],
)
def test_other_checks(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        call()


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_sums_are_kept_in_float32_at_least(dtype: torch.dtype, kept: torch.dtype) -> None:
    assert at_least_float32(torch.zeros(1, dtype=dtype)).dtype == kept
