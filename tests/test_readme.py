"""The snippets of the README run as they stand, in the code that a reader might have around them."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

README = Path(__file__).parent.parent / "README.md"


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def somebody_elses_code() -> dict[str, Any]:
    torch.manual_seed(0)
    encoder = nn.Conv2d(3, 8, 4, stride=4)

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = encoder

        def forward(self, images: Tensor) -> list[Tensor]:
            return [self.stem(images)]

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(8, 5, 1)

        def forward(self, features: list[Tensor]) -> Tensor:
            return self.head(features[0])

    model = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1))
    images = torch.randn(2, 2, 3, 128, 128)
    labels = torch.randint(5, (2, 2, 128, 128))
    return {
        "torch": torch,
        "model": model,
        "encoder": Features(),
        "decoder": Decoder(),
        "encoder_channels": [8],
        "num_classes": 5,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "source_loader": list(zip(images, labels, strict=True)),
        "target_loader": list(images.flip(-1)),
        "large_image": torch.randn(1, 3, 150, 200),
    }


@pytest.mark.parametrize("index", [0, 1])
def test_snippet_runs_and_learns(index: int) -> None:
    names = somebody_elses_code()
    trained = names["model"] if index == 0 else names["decoder"]
    before = [p.clone() for p in trained.parameters()]
    exec(snippets()[index], names)
    assert names["prediction"].shape == (1, 150, 200)
    assert names["prediction"].dtype == torch.int64
    assert any(not torch.equal(p, q) for p, q in zip(trained.parameters(), before, strict=True))


def test_there_are_two_snippets_of_the_promised_length() -> None:
    first, second = (text.strip().splitlines() for text in snippets())
    assert len([line for line in first if line]) <= 15
    assert len([line for line in second if line]) <= 25
