"""Data sets and sampling. Imported by examples, never by a primitive; needs Pillow."""

from hrda_lib.data.acdc import Acdc
from hrda_lib.data.bdd100k import Bdd100k
from hrda_lib.data.cityscapes import Cityscapes
from hrda_lib.data.classes import CITYSCAPES, LabelClass
from hrda_lib.data.colours import StoredColours
from hrda_lib.data.crops import SourceCrop, SourceCrops, TargetCrop, TargetCrops
from hrda_lib.data.dark_zurich import DarkZurich
from hrda_lib.data.folders import Concatenated, Folders, image_files
from hrda_lib.data.gta import Gta
from hrda_lib.data.labeled_files import LabeledFiles, LabeledImages, Sample, UnlabeledImages, UnlabeledSample
from hrda_lib.data.list_file import ListFile
from hrda_lib.data.mapillary import Mapillary
from hrda_lib.data.normalization import IMAGENET_MEAN, IMAGENET_STD, channel_statistics, normalize
from hrda_lib.data.opening import DATASET_KINDS, open_dataset, open_labeled_splits
from hrda_lib.data.rare_class import RareClasses, check_classes, count_labels, read_published_counts
from hrda_lib.data.reading import count_ids
from hrda_lib.data.relabeled import Relabeled
from hrda_lib.data.resized import Resized, ResizedImages
from hrda_lib.data.skipping import OnError
from hrda_lib.data.step_batches import StepBatches
from hrda_lib.data.synthia import SYNTHIA_CLASSES, SYNTHIA_CLASSES_13, Synthia

__all__ = [
    "CITYSCAPES",
    "DATASET_KINDS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "SYNTHIA_CLASSES",
    "SYNTHIA_CLASSES_13",
    "Acdc",
    "Bdd100k",
    "Cityscapes",
    "Concatenated",
    "DarkZurich",
    "Folders",
    "Gta",
    "LabelClass",
    "LabeledFiles",
    "LabeledImages",
    "ListFile",
    "Mapillary",
    "OnError",
    "RareClasses",
    "Relabeled",
    "Resized",
    "ResizedImages",
    "Sample",
    "SourceCrop",
    "SourceCrops",
    "StepBatches",
    "StoredColours",
    "Synthia",
    "TargetCrop",
    "TargetCrops",
    "UnlabeledImages",
    "UnlabeledSample",
    "channel_statistics",
    "check_classes",
    "count_ids",
    "count_labels",
    "image_files",
    "normalize",
    "open_dataset",
    "open_labeled_splits",
    "read_published_counts",
]
