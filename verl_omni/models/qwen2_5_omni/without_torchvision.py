"""Upstream's video processor of Qwen2-VL where torchvision is missing, as beside a CPU build of PyTorch.

transformers and vLLM import torchvision at the top of what they have for the family, and need one formula of it, as
long as frames have their size already; which the datasets of this package see to.
"""

import importlib
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from itertools import accumulate
from types import SimpleNamespace

import torch
import transformers
from transformers import image_processing_backends, video_processing_utils
from transformers.models.auto import video_processing_auto
from transformers.utils import is_torchvision_available

FUNCTIONAL = "torchvision.transforms.v2.functional"


def normalize(image: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """torchvision's: float ``[..., C, H, W]``, mean and std ``[C]``."""
    return image.sub(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))


def resize(self: object, image: torch.Tensor, size: SimpleNamespace, **_: object) -> torch.Tensor:
    """The method of upstream's video processor; ``ValueError`` where there would be anything to do."""
    height, width = image.shape[-2:]
    if (height, width) != (size.height, size.width):
        raise ValueError(
            f"frames of {height} x {width} pixels, {size.height} x {size.width} wanted: install torchvision, which "
            "resizes them, or pass frames of the processor's `frame_format()`"
        )
    return image


def import_processors() -> None:
    """Import upstream's modules, with the formulas above in place of torchvision if it is missing."""
    if is_torchvision_available():
        return
    names = accumulate(FUNCTIONAL.split("."), "{}.{}".format)
    stand_ins = {name: module_from_spec(ModuleSpec(name, None)) for name in names}
    stand_ins[FUNCTIONAL].InterpolationMode = None  # in annotations
    sys.modules.update(stand_ins)
    try:  # the image processor's module with it
        module = importlib.import_module("transformers.models.qwen2_vl.video_processing_qwen2_vl")
    finally:
        for name in stand_ins:  # nobody else is to take them for torchvision
            del sys.modules[name]
    processor = module.Qwen2VLVideoProcessor
    processor.resize = resize
    formulas = SimpleNamespace(normalize=normalize, grayscale_to_rgb=lambda video: video)
    image_processing_backends.tvF = video_processing_utils.tvF = formulas
    # Where transformers looks them up, and has placeholders that raise.
    sys.modules["transformers.models.qwen2_vl"].Qwen2VLVideoProcessor = processor
    transformers.Qwen2VLVideoProcessor = processor
    transformers.BaseVideoProcessor = video_processing_utils.BaseVideoProcessor
    transformers.AutoVideoProcessor = video_processing_auto.AutoVideoProcessor


import_processors()
