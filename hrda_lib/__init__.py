"""Primitives for high-resolution, unsupervised domain adaptation of semantic segmentation."""

from hrda_lib import optim as optim
from hrda_lib.adapted import Adapted
from hrda_lib.attention_head import ScaleAttentionHead
from hrda_lib.augment import StrongAugment, gaussian_blur
from hrda_lib.crops import MultiResCrops, MultiResCropSampler
from hrda_lib.feature_distance import FeatureDistance
from hrda_lib.fusion import ScaleAttentionFusion, fuse_scales
from hrda_lib.geometry import CropBox, crop, resize, window_grid
from hrda_lib.losses import ConfidenceWeightedCE, confidence_weighted_ce
from hrda_lib.masking import patch_mask
from hrda_lib.metrics import ConfusionMatrix
from hrda_lib.mixing import class_mix, sample_box_mask, sample_class_mask
from hrda_lib.pseudo_labeling import pseudo_labels
from hrda_lib.segmenter import MultiResSegmenter, ScalePredictions, SegmenterOutput
from hrda_lib.self_training import MixedBatch, SelfTraining
from hrda_lib.sliding_window import SlidingWindowInferer
from hrda_lib.teacher import EMATeacher
from hrda_lib.token_distillation import TokenDistillation

__version__ = "0.1.0"

__all__ = [
    "Adapted",
    "ConfidenceWeightedCE",
    "ConfusionMatrix",
    "CropBox",
    "EMATeacher",
    "FeatureDistance",
    "MixedBatch",
    "MultiResCropSampler",
    "MultiResCrops",
    "MultiResSegmenter",
    "ScaleAttentionFusion",
    "ScaleAttentionHead",
    "ScalePredictions",
    "SegmenterOutput",
    "SelfTraining",
    "SlidingWindowInferer",
    "StrongAugment",
    "TokenDistillation",
    "class_mix",
    "confidence_weighted_ce",
    "crop",
    "fuse_scales",
    "gaussian_blur",
    "patch_mask",
    "pseudo_labels",
    "resize",
    "sample_box_mask",
    "sample_class_mask",
    "window_grid",
]
