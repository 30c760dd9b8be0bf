# %% [markdown]
# # Any torchvision or smp network
#
# A network that maps images to logits needs no second scale: self-training takes it as
# it is, {class}`hrda_lib.Adapted` picks the logits. The scenes are drawn and tiny, so
# that it runs in seconds on a CPU: the figures say nothing about real images.

# %%
import torch

from hrda_lib import (
    EMATeacher,
    SelfTraining,
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
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from hrda_lib import Adapted

network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
student = Adapted(network, output="out")  # its answer is a dictionary
teacher = EMATeacher(student, decay=0.9)
training = SelfTraining(
    student, teacher, threshold=0.5, per="pixel", generator=generator
)
optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
for step in range(4):
    images, labels = scenes(2, 0.0)
    optimizer.zero_grad()
    for name, loss in training.losses(images, labels, scenes(2, 0.2)[0]):
        loss.backward()
        print(step, name, round(loss.item(), 3))
    optimizer.step()
    teacher.update(student)

# %% [markdown]
# Two scales around its parts: [](../../integrations/torchvision.md); networks of
# segmentation-models-pytorch: [](../../integrations/segmentation_models.md).
