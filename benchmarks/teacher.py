"""One update of the mean teacher, beside a flat lerp_ of as many numbers, timm and torch."""

from collections.abc import Callable, Iterator

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hrda_lib import EMATeacher
from hrda_lib.models import hrda
from rounds import OURS, Row, alternate

FLAT, TIMM, TORCH = "one flat lerp_", "timm ModelEmaV3 (foreach)", "torch AveragedModel"


def updates(student: nn.Module) -> dict[str, Callable[[], object]]:
    ours, timm = EMATeacher(student, warmup=False), ModelEmaV3(student, decay=0.999, foreach=True)
    torchs = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    return {
        OURS: lambda: ours.update(student),
        TIMM: lambda: timm.update(student),
        TORCH: lambda: torchs.update_parameters(student),
    }


def rows(rounds: int, *, small: bool = False) -> Iterator[Row]:
    student = hrda("mit_b0" if small else "mit_b5", 19)
    count = sum(parameter.numel() for parameter in student.parameters())
    mine, new = torch.randn(count), torch.randn(count)
    ways = {**updates(student), FLAT: lambda: mine.lerp_(new, 0.001)}
    parts = sum(1 for _ in student.parameters())
    yield alternate(
        f"{count / 1e6:.1f} M parameters in {parts} tensors",
        ways,
        rounds=2 * rounds,
        targets={FLAT: 1.08},
        note="the same lerp_ of tensor after tensor takes 1.04 to 1.1 of the flat one's time; the rest is the walk "
        "through both networks, which finds replaced and tied parameters, in caches that the averages have swept",
    )
    tiny = nn.ParameterList(nn.Parameter(torch.randn(8)) for _ in range(20 if small else 1000))
    yield alternate(
        f"{len(tiny)} tensors of 8 numbers in one list", updates(tiny), rounds=10 * rounds, targets={TIMM: 0.6}
    )
    layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(10 if small else 500)))
    title = f"{2 * len(layers)} tensors of {len(layers)} layers"
    yield alternate(title, updates(layers), rounds=10 * rounds, targets={TIMM: 0.6})
