"""What a step takes, on the CPU: images of both domains, labels, logits and weights, always the same."""

import torch

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TARGET = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(4, (2, 32, 32), generator=torch.Generator().manual_seed(2))
LOGITS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
WEIGHT = torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(4))
