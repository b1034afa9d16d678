"""Writing video and image files through PyAV, whole or frame by frame, with the sound of another file."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, cast

import av
import numpy as np
from av.container import OutputContainer
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from torch import Tensor

from pyratok.data.video_base import FALLBACK_FPS, PathLike, VideoError, exact_rate, note_true_size
from pyratok.data.video_pixels import BICUBIC, to_uint8
from pyratok.data.video_sound import SoundCopy
from pyratok.files import sync

_BT709, _LIMITED = 1, 1  # of AVColorSpace, AVColorPrimaries and AVColorTransferCharacteristic; of AVColorRange
_CHUNK = 16  # frames turned into bytes at a time


class _Format(NamedTuple):
    """How a kind of file is written: the names FFmpeg has for its muxer, encoder and pixels, and their options."""

    muxer: str
    codec: str
    pixels: str
    muxer_options: dict[str, str]
    codec_options: dict[str, str]

    @property
    def is_still(self) -> bool:
        return self.muxer == "image2"

    @property
    def is_lossy_video(self) -> bool:
        return self.pixels == "yuv420p"


# The AVX-512 routines of x264's macroblock tree do not repeat themselves, not even on one thread: frames of 32x64 came
# out differently nearly every time. This option puts the plain ones in their place, the same on every processor.
_X264 = {"x264-params": "cpu-independent=1"}
_MP4 = _Format("mp4", "libx264", "yuv420p", {"movflags": "+faststart"}, _X264)
_UPDATE = {"update": "1"}  # one file, not a numbered sequence
_JPEG = _Format("image2", "mjpeg", "yuvj444p", _UPDATE, {"qmin": "1", "qmax": "2"})
_FORMATS = {
    ".mp4": _MP4,
    ".m4v": _MP4,
    ".mov": _MP4._replace(muxer="mov"),
    ".mkv": _MP4._replace(muxer="matroska", muxer_options={}),
    ".webm": _Format("webm", "libvpx-vp9", "yuv420p", {}, {"b": "0", "cpu-used": "2"}),
    ".gif": _Format("gif", "gif", "pal8", {}, {}),
    ".png": _Format("image2", "png", "rgb24", _UPDATE, {}),
    ".bmp": _Format("image2", "bmp", "bgr24", _UPDATE, {}),
    ".webp": _Format("image2", "libwebp", "bgra", _UPDATE, {"lossless": "1"}),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
}


class VideoWriter:
    """Writes frames as they come; a context manager whose file appears, whole, when the block ends without an error.

    The suffix of ``path`` decides: .mp4 .m4v .mov .mkv (H.264), .webm (VP9), .gif (a palette per frame, times rounded
    to 1/100 s), or for a single frame .png .bmp .webp (lossless) and .jpg. Video is 4:2:0, BT.709, limited range, at
    the exact rate that ``fps`` stands for (29.97002997 is 30000/1001); ``fps`` may be None for a still image alone.
    H.264 in 4:2:0, the kind that plays everywhere, takes even sides only: an odd side gets one more row or column, a
    copy of the last, and the file notes its true size, which this package's readers cut back to. The same frames give
    the same file, byte for byte, in whatever parts they come.

    ``crf``: constant quality, from 0 (best) to 51. ``audio_from``: a file whose sound, from ``audio_start`` seconds
    after its first frame and for the length of the video, is copied without re-encoding. Where there is no sound none
    is written, nor, with a warning, where the container cannot hold it.

    Raises VideoError, and leaves nothing behind: unknown suffix, missing folder, bad rate or crf, no frame at all,
    frames of another size than the first, a second frame in an image, failure to encode or to write.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        fps: float | Fraction | None,
        crf: int = 16,
        audio_from: PathLike | None = None,
        audio_start: float = 0.0,
    ) -> None:
        self.path = Path(path)
        self.num_frames = 0
        suffix = self.path.suffix.lower()
        if suffix not in _FORMATS:
            known = " ".join(_FORMATS)
            raise VideoError(f"{path}: cannot write {suffix or 'without a suffix'}; use one of {known}")
        self._format = _FORMATS[suffix]
        if fps is None and not self._format.is_still:
            raise VideoError(f"{path}: the frame rate is unknown; pass fps=")
        if not self.path.parent.is_dir():
            raise VideoError(f"{path}: there is no folder {self.path.parent}")
        if self.path.is_dir():
            raise VideoError(f"{path}: is a folder")
        try:
            self._rate = exact_rate(FALLBACK_FPS if fps is None else fps)
        except ValueError as error:
            raise VideoError(f"{path}: {error}") from None
        if not 0 <= crf <= 51:
            raise VideoError(f"{path}: crf must be 0 (best) to 51, got {crf}")
        self._crf = crf
        self._audio = audio_from, audio_start
        # In the same folder, so that the final rename stays on one file system.
        self._temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}.tmp")
        self._container: OutputContainer | None = None
        self._sound: SoundCopy | None = None
        self._graph: Graph | None = None

    @property
    def is_still(self) -> bool:
        """Does the file hold a single image?"""
        return self._format.is_still

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self._sound is not None:
                self._sound.close()
            if self._container is not None:
                with suppress(av.FFmpegError, OSError):
                    self._container.close()
            self._temporary.unlink(missing_ok=True)

    def write(self, frames: np.ndarray | Tensor) -> None:
        """Append RGB frames: uint8 ``[T, H, W, 3]``, or float ``[3, T, H, W]`` or ``[1, 3, T, H, W]`` in [-1, 1]."""
        pictures = to_uint8(frames) if isinstance(frames, Tensor) else frames
        if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
            raise ValueError(f"expected uint8 frames [T, H, W, 3], got {pictures.dtype} {list(pictures.shape)}")
        for picture in pictures:
            if self._container is None:
                self._open(*picture.shape[:2])
            if picture.shape[:2] != self._size:
                raise VideoError(f"{self.path}: a frame of {_by(picture.shape)} after frames of {_by(self._size)}")
            if self._format.is_still and self.num_frames:
                raise VideoError(f"{self.path}: an image holds one frame; write the video to .mp4")
            with _failures_of(self.path):
                self._add(picture)

    def _open(self, height: int, width: int) -> None:
        kind = self._format
        self._size = height, width
        # Chroma of 4:2:0 has half the sides; VP9 rounds them up by itself.
        self._padding = (height % 2, width % 2) if kind.codec == "libx264" else (0, 0)
        with _failures_of(self.path):
            # "bitexact": no random identifiers in Matroska, no version of FFmpeg anywhere.
            options = kind.muxer_options | {"fflags": "+bitexact"}
            container = av.open(f"file:{self._temporary}", "w", format=kind.muxer, options=options)
            self._container = container
            self._stream = cast(VideoStream, container.add_stream(kind.codec, rate=self._rate))
        context = self._stream.codec_context
        context.height, context.width = height + self._padding[0], width + self._padding[1]
        context.pix_fmt = kind.pixels
        context.time_base = 1 / self._rate
        context.options = kind.codec_options | ({"crf": str(self._crf)} if kind.is_lossy_video else {})
        if kind.is_lossy_video:
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED
        if any(self._padding):
            container.metadata["comment"] = note_true_size(height, width)
        if kind.pixels == "pal8":
            self._graph = _palette_graph(height, width, 1 / self._rate)
        self._to_pixels = VideoReformatter()
        audio_from, audio_start = self._audio
        if audio_from is not None:
            self._sound = SoundCopy(audio_from, audio_start)
            if not self._sound.attach(container):
                warnings.warn(
                    f"{self.path}: written without sound, as {self.path.suffix} cannot hold the "
                    f"{self._sound.codec} sound of {audio_from}",
                    stacklevel=3,
                )

    def _add(self, picture: np.ndarray) -> None:
        (bottom, right), kind = self._padding, self._format
        if bottom or right:
            picture = np.pad(picture, ((0, bottom), (0, right), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        if self._graph is None:
            is_jpeg = kind.pixels == "yuvj444p"
            frame = self._to_pixels.reformat(
                frame,
                format=kind.pixels,
                dst_colorspace=Colorspace.ITU601 if is_jpeg else Colorspace.ITU709 if kind.is_lossy_video else None,
                dst_color_range=ColorRange.MPEG if kind.is_lossy_video else ColorRange.JPEG,
                interpolation=BICUBIC,
                threads=1,
            )
        frame.pts, frame.time_base = self.num_frames, 1 / self._rate
        self.num_frames += 1
        self._encode(frame)
        if self._sound is not None:
            self._sound.copy_until(float(self.num_frames / self._rate))

    def _encode(self, frame: av.VideoFrame | None) -> None:
        """Encode and store a frame, or with None what the encoder still holds."""
        assert self._container is not None
        for ready in self._palettised(frame) if self._graph is not None else [frame]:
            self._container.mux(self._stream.encode(ready))
        if frame is None and self._graph is not None:
            self._container.mux(self._stream.encode(None))

    def _palettised(self, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        assert self._graph is not None
        self._graph.push(frame)
        with suppress(BlockingIOError, EOFError):
            while True:
                yield self._graph.vpull()

    def _finish(self) -> None:
        if self._container is None:
            raise VideoError(f"{self.path}: no frame was written")
        with _failures_of(self.path):
            self._encode(None)
            self._container.close()
            sync(self._temporary)
            self._temporary.replace(self.path)


def save_video(
    video: Tensor,
    path: PathLike,
    *,
    fps: float | Fraction | None = None,
    crf: int = 16,
    audio_from: PathLike | None = None,
    audio_start: float = 0.0,
) -> None:
    """Write one clip ``[1, 3, T, H, W]`` or ``[3, T, H, W]`` in [-1, 1] to a file; see :class:`VideoWriter`.

    ``fps`` defaults to the ``.fps`` that the clip carries; a single frame needs none. Raises VideoError, also for a
    clip without frames, and ValueError for NaN, infinite values or another shape.
    """
    clip = video[0] if video.ndim == 5 and video.shape[0] == 1 else video
    if clip.ndim != 4 or clip.shape[0] != 3:
        raise ValueError(f"expected one clip [1, 3, T, H, W] or [3, T, H, W], got {list(video.shape)}")
    rate = fps if fps is not None else getattr(video, "fps", None)
    if rate is None and clip.shape[1] == 1:
        rate = FALLBACK_FPS
    with VideoWriter(path, fps=rate, crf=crf, audio_from=audio_from, audio_start=audio_start) as writer:
        for frames in clip.split(_CHUNK, dim=1):
            writer.write(frames)


def _palette_graph(height: int, width: int, clock: Fraction) -> Graph:
    """RGB frames in, each out in the 256 colours that suit it best."""
    graph = Graph()
    source = graph.add_buffer(width=width, height=height, format=VideoFormat("rgb24"), time_base=clock)
    split = graph.add("split")
    palette = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
    use = graph.add("paletteuse", "new=1")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(graph.add("buffersink"))
    graph.configure()
    return graph


@contextmanager
def _failures_of(path: Path) -> Iterator[None]:
    """One VideoError for whatever FFmpeg or the file system refuses."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot be written ({error.strerror or error})") from error


def _by(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
