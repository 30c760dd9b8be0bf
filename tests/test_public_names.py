"""Public names, parameters and defaults. Renaming one breaks people's code: see CONTRIBUTING.md."""

import inspect
from typing import Any

import pytest

import hrda_lib
import hrda_lib.checkpointing
import hrda_lib.data
import hrda_lib.distributed
import hrda_lib.lora
import hrda_lib.models
import hrda_lib.optim

SIGNATURES = {
    "Adapted": "(module, *, input=None, output=None)",
    "Adapted.forward": "(self, x)",
    "CropBox": "(top, left, height, width)",
    "crop": "(tensor, box)",
    "window_grid": "(size, window, stride)",
    "resize": "(x, size)",
    "MultiResCropSampler": "(detail_size, *, context_size=None, scale=2, output_stride=4, multiple_of=1)",
    "MultiResCropSampler.sample": "(self, size, generator=None)",
    "MultiResCropSampler.__call__": "(self, image, generator=None)",
    "MultiResCrops": "(context, detail, context_box, detail_box)",
    "fuse_scales": "(context_logits, detail_logits, attention, *, box=None, scale=2)",
    "ScaleAttentionFusion": "(*, scale=2, output_stride=4)",
    "ScaleAttentionFusion.forward": "(self, context_logits, detail_logits, attention_logits, box=None)",
    "ScaleAttentionHead": "(in_channels, out_channels, *, embed_dims=256, dropout=0.1, checkpoint=False)",
    "ScaleAttentionHead.forward": "(self, features)",
    "SlidingWindowInferer": "(window, *, stride=None, batch_size=4, blend='constant', output='logits', resize=True, "
    "pad=False, label_dtype=torch.int64, progress=None)",
    "SlidingWindowInferer.__call__": "(self, image, predictor)",
    "SlidingWindowInferer.stream": "(self, size, read, predictor)",
    "EMATeacher": "(student, *, decay=0.999, warmup=True, buffers='follow', batch_norm='train', share_frozen=False, "
    "module=None)",
    "EMATeacher.update": "(self, student)",
    "confidence_weighted_ce": "(logits, target, weight=None, *, ignore_index=255, class_weight=None, normalize='all', "
    "group=None)",
    "ConfidenceWeightedCE": "(*, ignore_index=255, class_weight=None, normalize='all')",
    "ConfidenceWeightedCE.forward": "(self, logits, target, weight=None, *, group=None)",
    "losses.entropy": "(logits, weight=None)",
    "pseudo_labels": "(logits, *, size=None, threshold=0.968, valid=None, per='batch', group=None)",
    "patch_mask": "(size, *, batch=1, ratio=0.7, block=64, generator=None)",
    "class_mix": "(source, target, mask)",
    "sample_box_mask": "(size, generator=None, *, batch=1, ratio=0.5, group=None)",
    "sample_class_mask": "(labels, generator=None, classes=None, *, group=None)",
    "StrongAugment": "(*, mean, std, jitter=0.8, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.2, blur=0.5, "
    "sigma=(0.15, 1.15))",
    "StrongAugment.__call__": "(self, images, generator=None, *, group=None)",
    "gaussian_blur": "(images, sigma)",
    "augment.fourier_style": "(source, target, *, beta=0.01)",
    "FeatureDistance": "(reference_encoder, *, classes, num_classes, weight=0.005, min_ratio=0.75, ignore_index=255, "
    "level=-1)",
    "FeatureDistance.forward": "(self, features, images, labels, *, group=None, whole=None)",
    "TokenDistillation": "(reference, in_channels, *, weight=0.1, size=406)",
    "TokenDistillation.forward": "(self, features, images)",
    "lora.add_lora": "(module, *, rank=32, alpha=None, targets=('qkv', 'q_proj', 'k_proj', 'v_proj', 'fc1', 'fc1_g', "
    "'fc1_x', 'fc2'), first_block=0)",
    "lora.merge_lora": "(module)",
    "MultiResSegmenter": "(encoder, decoder, attention, *, detail_size, scale=2, output_stride=4, multiple_of=1, "
    "detail_stride=None, fusion=None)",
    "MultiResSegmenter.forward": "(self, images, box=None, generator=None, *, detail=None)",
    "MultiResSegmenter.predict": "(self, images, *, window=None, stride=None, output='logits', batch_size=1, "
    "label_dtype=torch.int64, progress=None, confident=None)",
    "MultiResSegmenter.predict_scales": "(self, images, *, window=None, stride=None, batch_size=1)",
    "ScalePredictions": "(fused, context, detail, attention)",
    "SegmenterOutput": "(logits, detail_logits, detail_box, context_logits, attention, features, context)",
    "SelfTraining": "(student, teacher, *, criterion=None, feature_distance=None, detail_weight=0.1, threshold=0.968, "
    "per='batch', objective='fused', augment=None, masking=None, generator=None, group=None)",
    "SelfTraining.source": "(self, images, labels, *, box=None, whole=None)",
    "SelfTraining.supervised": "(self, images, labels, weight=None, *, box=None, whole=None)",
    "SelfTraining.pseudo_label": "(self, images, *, valid=None, micro_batch=None)",
    "MixedBatch": "(images, labels, weight)",
    "SelfTraining.mix": "(self, source_images, source_labels, target_images, labels, weight, *, classes=None, "
    "mask=None)",
    "SelfTraining.mixed": "(self, source_images, source_labels, target_images, labels, weight, *, classes=None, "
    "mask=None, box=None)",
    "SelfTraining.masked": "(self, target_images, labels, weight, *, mask=None, box=None)",
    "SelfTraining.losses": "(self, source_images, source_labels, target_images, *, target_valid=None, source_box=None, "
    "mixed_box=None, mixed_classes=None, masked_box=None)",
    "ConfusionMatrix": "(num_classes, *, ignore_index=255)",
    "ConfusionMatrix.update": "(self, prediction, target)",
    "ConfusionMatrix.reset": "(self)",
    "ConfusionMatrix.all_reduce": "(self, group=None)",
    "ConfusionMatrix.iou": "(self, *, absent=nan)",
    "ConfusionMatrix.mean_iou": "(self, classes=None, *, absent=nan)",
    "models.hrda": "(encoder='mit_b5', num_classes=19, *, embed_dims=256, attention_embed_dims=256, "
    "detail_size=(512, 512), attention_classwise=True, fixed_attention=None, drop_path=0.1, dropout=0.1, "
    "context_layer='sepaspp', in_channels=3, checkpoint_stages=())",
    "models.daformer": "(encoder='mit_b5', num_classes=19, *, embed_dims=256, drop_path=0.1, dropout=0.1, "
    "context_layer='sepaspp', in_channels=3, checkpoint_stages=())",
    "models.load_reference_checkpoint": "(model, path_or_state_dict, *, prefix=None)",
    "models.to_reference_state_dict": "(model)",
    "models.MixTransformer": "(size='mit_b5', *, in_channels=3, drop_path=0.1, checkpoint_stages=())",
    "models.MixTransformerSize": "(widths, depths)",
    "models.DAFormerHead": "(in_channels, num_classes, *, embed_dims=256, context_layer='sepaspp', "
    "dilations=(1, 6, 12, 18), dropout=0.1, checkpoint=False)",
    "models.deeplab_v2": "(num_classes=19, *, dilations=(6, 12), weights=None)",
    "models.DeepLabV2Head": "(in_channels, num_classes, *, dilations=(6, 12))",
    "models.TimmEncoder": "(name_or_model, *, weights=None, in_channels=3)",
    "models.TimmEncoder.forward": "(self, images)",
    "models.ViTFeatures": "(vit, *, out_indices=4, pos_embed='own')",
    "models.ViTFeatures.forward": "(self, images)",
    "models.SimplePyramid": "(in_channels, *, embed_dims=256)",
    "models.SimplePyramid.forward": "(self, features)",
    "models.DeconvHead": "(in_channels, num_classes, *, embed_dims=256, upsample=4)",
    "models.DeconvHead.forward": "(self, features)",
    "models.ResNet101": "(weights=None)",
    "models.EncoderDecoder": "(encoder, decoder)",
    "models.EncoderDecoder.forward": "(self, images, *, return_features=False)",
    "models.EncoderDecoder.predict": "(self, images, *, window=None, stride=None, output='logits', batch_size=1, "
    "label_dtype=torch.int64)",
    "models.load_encoder_weights": "(encoder, source)",
    "optim.parameter_groups": "(model, *, lr=6e-05, head_factor=10.0, weight_decay=0.01, layer_decay=1.0)",
    "optim.warmup_poly": "(optimizer, *, total=40000, warmup=1500, warmup_ratio=1e-06, power=1.0)",
    "checkpointing.save_checkpoint": "(path, state, *, keep=1)",
    "checkpointing.load_checkpoint": "(path, state)",
    "checkpointing.seed_step": "(seed, step, rank=0, *, generator=None)",
    "distributed.start": "(backend=None)",
    "distributed.stop": "()",
    "distributed.all_reduce_gradients": "(parameters, group=None)",
    "distributed.broadcast": "(module, group=None)",
    "distributed.average_buffers": "(module, group=None)",
    "distributed.mean": "(value, group=None)",
    "distributed.check_equal": "(module, group=None)",
    "data.Folders": "(root, *, ignore=(), read_image=None, read_label=None, max_pixels=None)",
    "data.Folders.unlabeled": "(self)",
    "data.Gta": "(root, *, max_pixels=None)",
    "data.Cityscapes": "(root, split, *, max_pixels=None)",
    "data.Synthia": "(root, *, max_pixels=None)",
    "data.Acdc": "(root, split, condition=None, *, max_pixels=None)",
    "data.DarkZurich": "(root, split, *, max_pixels=None)",
    "data.Bdd100k": "(root, split, *, max_pixels=None)",
    "data.Mapillary": "(root, split, *, max_pixels=None)",
    "data.ListFile": "(file, *, ignore=(), read_image=None, read_label=None, max_pixels=None)",
    "data.LabeledFiles": "(images, labels, names, *, read_image=None, read_label=None, settings='', layout='', "
    "max_pixels=None)",
    "data.LabeledFiles.check_files": "(self)",
    "data.LabeledFiles.check_size": "(self, index)",
    "data.UnlabeledImages": "(files, names=None, *, read_image=None, max_pixels=None)",
    "data.UnlabeledImages.with_files": "(self, files)",
    "data.UnlabeledImages.fingerprint": "(self)",
    "data.image_files": "(folder, *, any_ending=False)",
    "data.open_dataset": "(root, split='train', *, kind=None, max_pixels=None)",
    "data.open_labeled_splits": "(root, *, kind=None, max_pixels=None)",
    "data.normalize": "(images, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))",
    "data.channel_statistics": "(images)",
    "data.LabelClass": "(name, id, train_id, colour)",
    "data.count_ids": "(label)",
    "data.Relabeled": "(dataset, ids)",
    "data.StoredColours": "(colours, *, max_pixels=None)",
    "data.Resized": "(dataset, size, *, draft=False)",
    "data.ResizedImages": "(dataset, size, *, draft=False)",
    "data.Sample": "(image, label, name)",
    "data.UnlabeledSample": "(image, name)",
    "data.Concatenated": "(datasets)",
    "data.count_labels": "(dataset, *, cache=None, progress=None, workers=None, on_error='raise', group=None)",
    "data.LabeledFiles.count": "(self, index)",
    "data.read_counts": "(file)",
    "data.read_published_counts": "(file, names)",
    "data.check_classes": "(dataset, counts, num_classes, *, ignore_index=255)",
    "data.check_sizes": "(dataset, progress=None)",
    "data.RareClasses": "(counts, *, temperature=0.01, min_pixels=3000)",
    "data.RareClasses.draw": "(self, generator=None)",
    "data.SourceCrops": "(dataset, size, *, length=None, seed=0, rare_classes=None, min_crop_pixels=None, "
    "max_class_share=0.75, tries=10, on_error='raise')",
    "data.TargetCrops": "(dataset, size, *, length=None, seed=0, margins=(0, 0, 0, 0), on_error='raise')",
    "data.SourceCrops.name": "(self, k)",
    "data.TargetCrops.name": "(self, k)",
    "data.StepBatches": "(batch_size, steps, *, start=0, rank=0, world=1)",
}


def signature(name: str) -> str:
    found: Any = hrda_lib
    for part in name.split("."):
        found = getattr(found, part)
    parameters = inspect.signature(found).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    return str(inspect.Signature([p.replace(name=p.name.removeprefix("_")) for p in bare]))


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str) -> None:
    assert signature(name) == SIGNATURES[name]


def test_exported_names() -> None:
    top = {name for name in SIGNATURES if "." not in name}
    assert set(hrda_lib.__all__) == top
    models = {name.split(".")[1] for name in SIGNATURES if name.startswith("models.")}
    assert set(hrda_lib.models.__all__) == models
    inner = {name.split(".")[1] for name in SIGNATURES if name.startswith("data.")}
    assert set(hrda_lib.data.__all__) == inner | {
        "CITYSCAPES",
        "DATASET_KINDS",
        "IMAGENET_MEAN",
        "IMAGENET_STD",
        "LabeledImages",
        "OnError",
        "SYNTHIA_CLASSES",
        "SYNTHIA_CLASSES_13",
        "SourceCrop",
        "TargetCrop",
    }
