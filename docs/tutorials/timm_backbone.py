# %% [markdown]
# # A backbone of timm
#
# Any network of timm with features; random weights here, `weights=FILE` reads yours.
# The scenes are drawn and tiny, so that it runs in seconds on a CPU: the figures say
# nothing about real images.

# %%
import torch

from hrda_lib import (
    ConfusionMatrix,
    EMATeacher,
    MultiResSegmenter,
    ScaleAttentionHead,
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
# `channels` and `strides` are those of the features, from fine to coarse. Logits have
# the stride of the first.

# %%
from hrda_lib.models import DAFormerHead, TimmEncoder

encoder = TimmEncoder("convnext_atto")
print(encoder.channels, encoder.strides)
decoder = DAFormerHead(encoder.channels, 3, embed_dims=16)
attention = ScaleAttentionHead(encoder.channels, 3, embed_dims=16)
student = MultiResSegmenter(
    encoder, decoder, attention, detail_size=32, output_stride=encoder.strides[0]
)
history = train(student, 4, 3, lambda: scenes(2, 0.0))
print(f"mean IoU {measure(student):.3f}")
