"""robomimic's algorithms import torchvision, whose CUDA build fails beside a CPU torch for want of two operators.

Declaring their schemas is enough to import it; nothing here calls them.
"""

import sys

import torch

_libraries = []  # a Library that is collected takes its schemas with it

try:
    import torchvision  # noqa: F401
except RuntimeError:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
