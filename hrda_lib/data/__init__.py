"""Data sets and sampling. Imported by examples, never by a primitive; needs Pillow."""

from hrda_lib.data.concatenated import Concatenated
from hrda_lib.data.folders import Folders, image_files
from hrda_lib.data.label_counts import check_classes, count_labels, read_counts, read_published_counts
from hrda_lib.data.labeled_files import LabeledFiles
from hrda_lib.data.list_file import ListFile
from hrda_lib.data.normalization import IMAGENET_MEAN, IMAGENET_STD, channel_statistics, normalize
from hrda_lib.data.opening import DATASET_KINDS, open_dataset, open_labeled_splits
from hrda_lib.data.rare_class import RareClasses
from hrda_lib.data.relabeled import Relabeled
from hrda_lib.data.resized import Resized, ResizedImages
from hrda_lib.data.samples import LabelClass, LabeledImages, Sample, UnlabeledSample
from hrda_lib.data.sizes import check_sizes
from hrda_lib.data.skipping import OnError
from hrda_lib.data.step_batches import StepBatches
from hrda_lib.data.stored_colours import StoredColours
from hrda_lib.data.stored_ids import count_ids
from hrda_lib.data.streams import SourceCrop, SourceCrops, TargetCrop, TargetCrops
from hrda_lib.data.streets import (
    CITYSCAPES,
    SYNTHIA_CLASSES,
    SYNTHIA_CLASSES_13,
    Acdc,
    Bdd100k,
    Cityscapes,
    DarkZurich,
    Gta,
    Mapillary,
    Synthia,
)
from hrda_lib.data.unlabeled_images import UnlabeledImages

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
    "check_sizes",
    "count_ids",
    "count_labels",
    "image_files",
    "normalize",
    "open_dataset",
    "open_labeled_splits",
    "read_counts",
    "read_published_counts",
]
