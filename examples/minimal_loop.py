"""HRDA in a plain PyTorch loop around a torchvision segmentation model.

Its features are a dictionary; ``Adapted`` says which entry is meant. Random tensors stand for the data: replace
``batches`` by two data loaders, and give the model pretrained weights.
"""

import torch
from torch import Tensor
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from hrda_lib import Adapted, EMATeacher, MultiResSegmenter, ScaleAttentionHead, SelfTraining, StrongAugment

CLASSES, STEPS = 19, 2


def batches(step: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    source, target = torch.randn(2, 2, 3, 128, 128, generator=generator)
    return source, torch.randint(CLASSES, (2, 128, 128), generator=generator), target


def main() -> None:
    torch.manual_seed(0)
    network = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)
    decoder = Adapted(network.classifier, input="out")
    attention = Adapted(ScaleAttentionHead([960], CLASSES), input=["out"])
    student = MultiResSegmenter(network.backbone, decoder, attention, detail_size=(64, 64), output_stride=16)
    teacher = EMATeacher(student)
    augment = StrongAugment(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    training = SelfTraining(student, teacher, augment=augment)
    optimizer = torch.optim.AdamW(student.parameters(), lr=6e-5, weight_decay=0.01)

    for step in range(STEPS):
        if step > 0:
            teacher.update(student)
        for name, loss in training.losses(*batches(step)):
            loss.backward()
            print(f"step {step} {name} {loss.item():.3f}")
        optimizer.step()
        optimizer.zero_grad()

    print(student.predict(torch.randn(1, 3, 200, 300), output="labels").shape)


if __name__ == "__main__":
    main()
