import numpy as np
import torch
from hrda_lib.data import Folders


def bands(file):
    return torch.from_numpy(np.load(file)).float()


source = Folders("data/source", read_image=bands)
target = Folders("data/target", read_image=bands).unlabeled()
names = ["water", "field", "forest"]
