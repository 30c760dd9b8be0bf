"""Which samples of a stream each training step takes."""

from collections.abc import Iterator

from torch.utils.data import Sampler


class StepBatches(Sampler[list[int]]):
    r"""A batch for each step: a function of (step, rank) alone, for the ``batch_sampler`` of a loader.

    .. math::
        k = (\mathrm{step} \cdot \mathrm{world} + \mathrm{rank}) \cdot \mathrm{batch\_size} + j,
        \qquad j = 0, \dots, \mathrm{batch\_size} - 1

    A sample of :class:`SourceCrops` or :class:`TargetCrops` depends on (seed, k) alone. So a run goes on from a step
    number, with any number of workers, and the ranks together see what one process with their whole batch sees.

    Args:
        batch_size: samples a step of one process.
        steps: where training ends.
        start: the first step to take, when a run goes on.
        rank: of this process.
        world: number of processes.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> from hrda_lib.data import StepBatches
        >>> list(StepBatches(2, 5, start=3))
        [[6, 7], [8, 9]]
        >>> list(StepBatches(1, 5, start=3, rank=1, world=2))
        [[7], [9]]
    """

    def __init__(self, batch_size: int, steps: int, *, start: int = 0, rank: int = 0, world: int = 1) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        if not 0 <= start <= steps:
            raise ValueError(f"start must be in [0, steps], got start={start}, steps={steps}")
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in [0, world), got rank={rank}, world={world}")
        self.batch_size, self.steps, self.start, self.rank, self.world = batch_size, steps, start, rank, world

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.steps):
            first = (step * self.world + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))
