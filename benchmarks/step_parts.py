"""Where a step of self-training with HRDA spends its time, beside its convolutions and matrix products alone.

Each part's ratio is its share of the step. That of the step itself is to the time that the profiler finds in operators
of convolution, matrix product and attention: what is above 1 is everything else.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from rounds import OURS, Row, alternate
from self_training import OurStep, network, pictures

KERNELS = ("conv", "mm", "attention")  # words in the names of operators
WHOLE, KERNEL_TIME, CHANNELS_LAST = "the step", "its kernels", "channels last"
LIMIT = "beside its kernels, copies and batch norm take most: 9 and 9 % of the step of mit_b0, "
LIMIT += "concatenation and resizing 4 % (profile of one step)"
TARGETS = {"mixing, jitter and blur": {WHOLE: 0.05}}


class Parts:
    """Milliseconds of each part of a step."""

    def __init__(self, step: OurStep) -> None:
        self.step, self.spent = step, dict[str, float]()
        assert step.training.feature_distance is not None
        self.timed_within(step.training.feature_distance, "feature distance, forward")

    def timed_within(self, module: torch.nn.Module, name: str) -> None:
        """Time the calls of a module that a part makes, and take them out of that part."""
        inner = module.forward

        def forward(*given: Any) -> Any:
            return self.of(name, lambda: inner(*given))

        module.forward = forward

    def of(self, name: str, run: Callable[[], Any]) -> Any:
        inside, start = sum(self.spent.values()), time.perf_counter()
        answer = run()
        elapsed = 1e3 * (time.perf_counter() - start)
        self.spent[name] = self.spent.get(name, 0.0) + elapsed - (sum(self.spent.values()) - inside)
        return answer

    def run(self) -> dict[str, float]:
        self.spent.clear()
        step = self.step
        training = step.training
        (images, labels), (target, _) = pictures(step.side, 0), pictures(step.side, 1)
        self.of("teacher's average", lambda: step.teacher.update(step.student))
        loss, _ = self.of("source, forward", lambda: training.source(images, labels))
        self.of("source and distance, backward", loss.backward)
        said = self.of("teacher's labels", lambda: training.pseudo_label(target))
        mixed = self.of("mixing, jitter and blur", lambda: training.mix(images, labels, target, *said))
        loss, _ = self.of("mixed, forward", lambda: forward_of(step, mixed))
        self.of("mixed, backward", loss.backward)
        self.of("optimiser", step.optimizer.step)
        step.optimizer.zero_grad()
        return dict(self.spent)


def forward_of(step: OurStep, mixed: Any) -> Any:
    """The loss of what is mixed already: as that of a masked batch from which nothing is hidden."""
    mask = torch.ones(len(mixed.images), 1, *mixed.images.shape[-2:], dtype=torch.bool)
    return step.training.masked(*mixed, mask=mask)


def kernel_time(run: Callable[[], object]) -> float:
    """Milliseconds of a run in operators that convolve, multiply matrices or attend."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    spent = [entry.self_cpu_time_total for entry in found.key_averages() if any(word in entry.key for word in KERNELS)]
    return sum(spent) / 1e3


def rows(rounds: int, *, small: bool = False) -> Iterator[Row]:
    for encoder, side in [("mit_b0", 64)] if small else [("mit_b0", 256), ("mit_b2", 512)]:
        title = f"{encoder}, 2 + 2 images of {side}², detail {side // 2}²"
        step = OurStep(network(encoder, side), side)
        parts = Parts(step)
        parts.run()  # the first step allocates
        fewer = max(rounds // 3, 1) if side > 256 else rounds
        found, kernels = [], []
        for _ in range(fewer):
            found.append(parts.run())
            kernels.append(kernel_time(step))
        whole = [sum(each.values()) for each in found]
        for name in found[0]:
            values = {OURS: [each[name] for each in found], WHOLE: whole}
            yield Row(f"{title}: {name}", "ms", values, TARGETS.get(name, {}))
        yield Row(f"{title}: the step", "ms", {OURS: whole, KERNEL_TIME: kernels}, {KERNEL_TIME: 1.35}, LIMIT)
        last = OurStep(network(encoder, side).to(memory_format=torch.channels_last), side)
        ways: dict[str, Callable[[], object]] = {OURS: OurStep(network(encoder, side), side), CHANNELS_LAST: last}
        yield alternate(f"{title}: the step, weights in two layouts", ways, rounds=fewer)
