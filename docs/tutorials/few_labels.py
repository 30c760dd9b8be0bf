# %% [markdown]
# # A few labelled target images
#
# They are further source images: draw them more often than they are. What is measured
# on must be others. The scenes are drawn and tiny, so that it runs in seconds on a CPU:
# the figures say nothing about real images.

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


# %%
encoder = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), nn.ReLU())
student = MultiResSegmenter(
    encoder, nn.Conv2d(16, 3, 1), nn.Conv2d(16, 1, 1), detail_size=32
)

few_images, few_labels = scenes(2, 0.2)  # the only labelled target pictures


def source():
    """One picture of the source, and one of the few."""
    images, labels = scenes(1, 0.0)
    chosen = int(torch.randint(2, (1,), generator=generator))
    few = slice(chosen, chosen + 1)
    return torch.cat([images, few_images[few]]), torch.cat([labels, few_labels[few]])


history = train(student, 20, 10, source)
print(round(measure(student), 3))

# %% [markdown]
# The control has the few as well: compare with a run without self-training on the same
# pictures.
