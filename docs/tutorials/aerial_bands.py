# %% [markdown]
# # Aerial images: tiles and bands
#
# Four bands in place of RGB, and a large picture predicted by windows. The scenes are
# drawn and tiny, so that it runs in seconds on a CPU: the figures say nothing about
# real images.

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
COLOURS = torch.rand(3, 4, generator=generator)  # of the classes, in each channel


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
# Only the first layer knows the number of bands. Without `augment` mixed images keep
# their colours.

# %%
encoder = nn.Sequential(nn.Conv2d(4, 16, 4, stride=4), nn.ReLU())
student = MultiResSegmenter(
    encoder, nn.Conv2d(16, 3, 1), nn.Conv2d(16, 1, 1), detail_size=32
)

history = train(student, 20, 10, lambda: scenes(2, 0.0))

# %% [markdown]
# A large picture is predicted in windows; give the step and the window in pixels. What
# does not fit into memory: [](../../howto/huge_images.md).

# %%
large = torch.cat([scenes(1, 0.2)[0] for _ in range(3)], dim=-1)
labels = student.predict(
    large, window=64, stride=32, output="labels", label_dtype=torch.uint8
)
assert labels.shape == (1, 64, 288)

# %%
from matplotlib import pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(9, 1.3), layout="constrained")
axes[0].imshow(large[0, :3].movedim(0, -1).clamp(0, 1).numpy())
axes[0].set(title="three of its bands", xticks=[], yticks=[])
axes[1].imshow(labels[0].numpy(), vmin=0, vmax=2)
axes[1].set(title="predicted", xticks=[], yticks=[])
