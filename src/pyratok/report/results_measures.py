"""Numbers of benchmarks, named for people: labels, digits, shares in percent."""

from __future__ import annotations

import re
from typing import NamedTuple


class Measure(NamedTuple):
    """A number's name, as a record calls it and as people read it; it is shown times ``scale``, with ``digits``."""

    key: str
    label: str
    digits: int = 4
    scale: float = 1.0

    def of(self, part: str) -> Measure:
        """The same of a part of what is measured."""
        return self._replace(key=f"{self.key}, {part}", label=f"{self.label}, {part}")


_LABELS = {
    "psnr": "PSNR, dB",
    "psnr_video": "PSNR of whole clips, dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "st_lpips": "ST-LPIPS",
    "average_map": "average mAP",
    "map": "average mAP",
    "average_map_all_classes": "average mAP, all classes",
    "gfvd": "gFVD",
    "rfvd": "rFVD",
    "fvd": "FVD",
    "tc": "TC",
    "mean_class_top1": "top-1, mean over classes",
    "chance_top1": "top-1 by chance",
    "accuracy_over_questions": "accuracy, over questions",
    "noun": "right thing",
    "colour": "right colour",
    "way": "right way",
    "all": "thing, colour and way",
    "agreement": "nearer to its own prompt",
    "fd": "Frechet distance, ST-LPIPS features",
    "nearest": "bits in common with the nearest training clip",
    "copies": "copies of training clips",
}
_REWRITTEN = (
    (r"psnr_(.*)_decoded", r"PSNR, \1 by tokens alone, dB"),
    (r"psnr_(.*)", r"PSNR, \1, dB"),
    (r"(.*)_decoded_ahead", r"clips where \1 by tokens alone is ahead of a still"),
    (r"(.*)_ahead", r"clips where \1 is ahead of a still"),
    (r"map_at_(.*)", r"mAP at tIoU \1"),
    (r"map (.*)", r"average mAP, \1"),
    (r"jaccard (.*)", r"Jaccard, \1"),
    (r"questions (.*)", r"questions answered, \1"),
    (r"a([pr]\d*)", lambda m: m[0].upper()),
    (r"top(\d)", r"top-\1"),
    (r"bd_rate_percent_to_(\w+)_by_ssim", r"BD-rate to \1 by SSIM, %"),
    (r"bd_rate_percent_to_(\w+)", r"BD-rate to \1, %"),
    (r"bd_psnr_to_(\w+)", r"BD-PSNR to \1, dB"),
)
_SHOWN = (
    (r"psnr.*|bd_psnr.*", 2, 1.0),
    (r"ssim|(st_)?lpips", 3, 1.0),
    (r"bd_rate.*|g?fvd|rfvd", 1, 1.0),
    (r"tc", 2, 1.0),
    (r"ap\d*|ar\d+|jaccard.*|(average_)?map.*|top\d|.*_top1|chance|accuracy.*|questions.*|pointing.*", 2, 100.0),
    (r"noun|colour|way|all|agreement|nearest", 1, 100.0),
    (r"copies|.*_ahead", 0, 1.0),
)


def describe(key: str) -> Measure:
    """A number of a benchmark, by the name that its record has for it; shares become percent."""
    digits, scale = next(((d, s) for pattern, d, s in _SHOWN if re.fullmatch(pattern, key)), (4, 1.0))
    label = _LABELS.get(key)
    for pattern, words in _REWRITTEN:
        if label is None and re.fullmatch(pattern, key):
            label = re.sub(pattern, words, key)
    label = label or key.replace("_", " ")
    return Measure(key, f"{label}, %" if scale == 100 else label, digits, scale)
