# %% [markdown]
# # Your own street images
#
# Labelled pictures of one domain, pictures without labels of another. The scenes are
# drawn and tiny, so that it runs in seconds on a CPU: the figures say nothing about
# real images. Here tensors stand for what a loader gives; [](../../howto/own_images.md)
# has the loader.

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


# %% [markdown]
# Any encoder and decoder; see [](../../howto/own_backbone.md).

# %%
encoder = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), nn.ReLU())
student = MultiResSegmenter(
    encoder, nn.Conv2d(16, 3, 1), nn.Conv2d(16, 1, 1), detail_size=32
)

# %% [markdown]
# Train the control first: as many steps, without the target. Only what is above it was
# given by target images.

# %%
import copy

control = copy.deepcopy(student)
train(control, 40, 0, lambda: scenes(2, 0.0))
history = train(student, 20, 20, lambda: scenes(2, 0.0))
print(f"control {measure(control):.3f}, adapted {measure(student):.3f}")

# %% [markdown]
# Look at pictures as well as at the mean: where both are wrong, and where one is.

# %%
from matplotlib import pyplot as plt

images, labels = scenes(1, 0.2)
shown = {
    "image": images[0].movedim(0, -1).clamp(0, 1).numpy(),
    "labels": labels[0].numpy(),
    "control": control.predict(images, output="labels")[0].numpy(),
    "adapted": student.predict(images, output="labels")[0].numpy(),
}
figure, axes = plt.subplots(1, 4, figsize=(9, 1.9), layout="constrained")
for axis, (name, picture) in zip(axes, shown.items(), strict=True):
    axis.imshow(picture, vmin=0, vmax=2)
    axis.set(title=name, xticks=[], yticks=[])
