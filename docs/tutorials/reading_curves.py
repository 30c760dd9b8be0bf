# %% [markdown]
# # Reading curves
#
# What to look at while a run goes. The scenes are drawn and tiny, so that it runs in
# seconds on a CPU: the figures say nothing about real images.

# %%
import torch
from torch import nn

from hrda_lib import (
    ConfusionMatrix,
    EMATeacher,
    MultiResSegmenter,
    SelfTraining,
    confidence_weighted_ce,
)

torch.manual_seed(0)  # of the weights
generator = torch.Generator().manual_seed(0)
COLOURS = torch.rand(3, 3, generator=generator)  # of the classes, in each channel


def scenes(count, shift):
    """Pictures of three classes, and labels; ``shift`` makes them another domain."""
    labels = torch.zeros(count, 64, 96, dtype=torch.long)
    labels[:, 32:] = 1
    for label in labels:
        left = int(torch.randint(64, (1,), generator=generator))
        label[20:44, left : left + 24] = 2
    images = COLOURS[labels].movedim(-1, 1) + shift
    return images + 0.1 * torch.randn(images.shape, generator=generator), labels


# %%
def train(student, steps, target_steps, source):
    """First on the source alone, then with target images; the losses of each step."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    for _ in range(steps):
        images, labels = source()
        loss = confidence_weighted_ce(
            student(images, generator=generator).logits, labels
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    teacher, history = EMATeacher(student, decay=0.9), []
    training = SelfTraining(
        student, teacher, threshold=0.8, per="pixel", generator=generator
    )
    for _ in range(target_steps):
        images, labels = source()
        losses = {}
        optimizer.zero_grad()
        for name, loss in training.losses(images, labels, scenes(2, 0.2)[0]):
            loss.backward()
            losses[name] = loss.item()
        images, _ = scenes(2, 0.2)
        losses["confidence"] = training.pseudo_label(images)[1].mean().item()
        optimizer.step()
        teacher.update(student)
        history.append(losses)
    return history


def measure(student):
    """Mean IoU on target scenes, whose labels nothing learnt from."""
    images, labels = scenes(4, 0.2)
    confusion = ConfusionMatrix(3)
    confusion.update(student.predict(images, output="labels"), labels)
    return float(confusion.mean_iou())


# %%
encoder = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), nn.ReLU())
student = MultiResSegmenter(
    encoder, nn.Conv2d(16, 3, 1), nn.Conv2d(16, 1, 1), detail_size=32
)

history = train(student, 20, 40, lambda: scenes(2, 0.0))
for name in ("source", "mixed"):
    print(name, [round(losses[name], 2) for losses in history[::10]])

# %%
from matplotlib import pyplot as plt

figure, axes = plt.subplots(1, 3, figsize=(9, 2.4), layout="constrained")
for axis, name in zip(axes, ("source", "mixed", "confidence"), strict=True):
    axis.plot([losses[name] for losses in history])
    axis.set(title=name, xlabel="step")

# %% [markdown]
# - The **source loss** goes on falling, or stays: if it rises, the learning rate is too
#   large.
# - The **mixed loss** is weighted by confidence. A small one may mean that the teacher
#   trusts nothing, so look at both.
# - The **confidence**: the share of trusted pixels. It should be above 0 soon and rise
#   slowly.

# %%
teacher = EMATeacher(student)
training = SelfTraining(
    student, teacher, threshold=0.8, per="pixel", generator=generator
)
labels, weight = training.pseudo_label(scenes(2, 0.2)[0])
largest = labels.flatten().bincount().max().item() / labels.numel()
print(f"trusted {weight.mean():.2f}, largest class {largest:.2f}")

# %% [markdown]
# - **One class in nearly all pseudo labels** is a collapse:
#   [](../../troubleshooting.md#pseudo-labels-collapse-to-one-class).
# - The **mean IoU** on labelled target images says the truth, and nothing may be chosen
#   by it.
#
# The scripts write all of it to `metrics.jsonl`, and draw `curves.png`.
