"""Data sets and sampling. Imported by examples, never by a primitive; needs Pillow."""

from hrda_lib.data.crops import SourceCrop, SourceCrops, TargetCrop, TargetCrops
from hrda_lib.data.folders import Concatenated, Folders, Sample, UnlabeledImages, UnlabeledSample
from hrda_lib.data.rare_class import RareClasses, check_classes, count_labels

__all__ = [
    "Concatenated",
    "Folders",
    "RareClasses",
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
