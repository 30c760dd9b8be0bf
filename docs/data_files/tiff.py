from hrda_lib.data import Folders
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor


def tiff(file):
    return pil_to_tensor(Image.open(file)).float()


source = Folders("data/source", read_image=tiff)
target = Folders("data/target", read_image=tiff).unlabeled()
names = ["water", "field", "forest"]
