"""Published street data sets, read as they are downloaded, as the 19 classes of Cityscapes."""

from hrda_lib.data.streets.acdc import Acdc
from hrda_lib.data.streets.bdd100k import Bdd100k
from hrda_lib.data.streets.cityscapes import Cityscapes
from hrda_lib.data.streets.classes import CITYSCAPES
from hrda_lib.data.streets.dark_zurich import DarkZurich
from hrda_lib.data.streets.gta import Gta
from hrda_lib.data.streets.mapillary import Mapillary
from hrda_lib.data.streets.synthia import SYNTHIA_CLASSES, SYNTHIA_CLASSES_13, Synthia

__all__ = [
    "CITYSCAPES",
    "SYNTHIA_CLASSES",
    "SYNTHIA_CLASSES_13",
    "Acdc",
    "Bdd100k",
    "Cityscapes",
    "DarkZurich",
    "Gta",
    "Mapillary",
    "Synthia",
]
