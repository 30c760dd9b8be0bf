"""The 19 classes of Cityscapes, which every street data set is read as."""

from hrda_lib.data.samples import LabelClass

CITYSCAPES = (
    LabelClass("road", 7, 0, (128, 64, 128)),
    LabelClass("sidewalk", 8, 1, (244, 35, 232)),
    LabelClass("building", 11, 2, (70, 70, 70)),
    LabelClass("wall", 12, 3, (102, 102, 156)),
    LabelClass("fence", 13, 4, (190, 153, 153)),
    LabelClass("pole", 17, 5, (153, 153, 153)),
    LabelClass("traffic light", 19, 6, (250, 170, 30)),
    LabelClass("traffic sign", 20, 7, (220, 220, 0)),
    LabelClass("vegetation", 21, 8, (107, 142, 35)),
    LabelClass("terrain", 22, 9, (152, 251, 152)),
    LabelClass("sky", 23, 10, (70, 130, 180)),
    LabelClass("person", 24, 11, (220, 20, 60)),
    LabelClass("rider", 25, 12, (255, 0, 0)),
    LabelClass("car", 26, 13, (0, 0, 142)),
    LabelClass("truck", 27, 14, (0, 0, 70)),
    LabelClass("bus", 28, 15, (0, 60, 100)),
    LabelClass("train", 31, 16, (0, 80, 100)),
    LabelClass("motorcycle", 32, 17, (0, 0, 230)),
    LabelClass("bicycle", 33, 18, (119, 11, 32)),
)
"""(name, id, train_id, colour) of each class, by train id."""
