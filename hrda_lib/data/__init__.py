"""Data sets and sampling. Imported by examples, never by a primitive; needs Pillow."""

from hrda_lib.data.cityscapes import Cityscapes
from hrda_lib.data.classes import CITYSCAPES
from hrda_lib.data.crops import SourceCrop, SourceCrops, TargetCrop, TargetCrops
from hrda_lib.data.folders import Concatenated, Folders
from hrda_lib.data.gta import Gta
from hrda_lib.data.labeled_files import LabeledFiles, Sample, UnlabeledImages, UnlabeledSample
from hrda_lib.data.rare_class import RareClasses, check_classes, count_labels
from hrda_lib.data.resized import Resized, ResizedImages

__all__ = [
    "CITYSCAPES",
    "Cityscapes",
    "Concatenated",
    "Folders",
    "Gta",
    "LabeledFiles",
    "RareClasses",
    "Resized",
    "ResizedImages",
    "Sample",
    "SourceCrop",
    "SourceCrops",
    "TargetCrop",
    "TargetCrops",
    "UnlabeledImages",
    "UnlabeledSample",
    "check_classes",
    "count_labels",
]
