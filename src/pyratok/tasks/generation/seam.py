"""Where new frames and regions meet the video that was given: nothing that was sharp becomes blurred at once.

Tokens keep less of a frame than it has. Shown as they decode, the frames behind the last given one would lose its
detail, all of them and everywhere, also where nothing moves. :func:`join` gives them the given pixels wherever tokens
say that nothing has changed since, and the decoded ones where they say that something has:

    e = mean of (decoded_t - decoded_last)^2 over the colours and a window of 15 x 15 pixels
    w = 1 / (1 + (NOISE^2 / e)^2)                     (0 where e is noise alone, 1 where it is far more)
    frame_t = given_last + w (decoded_t - given_last)

:func:`paste` keeps the given pixels around a region that is made anew, with a soft edge.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NOISE, WINDOW = 0.14, 15
"""How much decoded frames differ, in the root mean square of [-1, 1], where they count half; pixels of the window.
Chosen on training footage with pyratok-nano at 64 pixels, for true tokens and for those of its prior."""
EDGE = 4
"""Half the width in pixels of the edge around a region."""


def join(given: Tensor, decoded: Tensor) -> Tensor:
    """A video ``[B, 3, T, H, W]`` in [-1, 1] that begins as ``given`` ``[1 or B, 3, t, H, W]``, with the pixels of it.

    ``decoded`` ``[B, 3, T, H, W]``, T > t: what tokens say of the whole, given frames included.

    Raises ValueError for videos that do not fit together.
    """
    begun, frames = given.shape[2], decoded.shape[2]
    if not 0 < begun < frames or given.shape[3:] != decoded.shape[3:] or len(given) not in (1, len(decoded)):
        raise ValueError(
            f"{list(decoded.shape)} does not go on from {list(given.shape)}: wanted more frames, and the same height, "
            "width and number of clips (or one clip to go on from)"
        )
    given, decoded = given.to(decoded), decoded.as_subclass(Tensor)
    given = given.as_subclass(Tensor).expand(len(decoded), -1, -1, -1, -1)
    last, later = given[:, :, -1:], decoded[:, :, begun:]
    change = (later - decoded[:, :, begun - 1 : begun]).square().mean(1, keepdim=True)
    around = (0, WINDOW // 2, WINDOW // 2)
    change = F.avg_pool3d(change, (1, WINDOW, WINDOW), stride=1, padding=around, count_include_pad=False)
    weight = 1 / (1 + (NOISE**2 / change.clamp_min(1e-8)).square())
    return torch.cat([given, torch.lerp(last.expand_as(later), later, weight)], dim=2)


def paste(given: Tensor, region: Tensor, decoded: Tensor) -> Tensor:
    """A video ``[B, 3, T, H, W]`` that is ``decoded`` within a region, and ``given`` at more than 8 pixels from it; in
    between one fades into the other.

    ``region`` bool ``[>= T, H, W]``, ``given`` ``[1 or B, 3, >= T, H, W]``: of both the first T frames count.

    Raises ValueError for videos and regions that do not fit together.
    """
    frames = decoded.shape[2]
    fits = given.shape[3:] == decoded.shape[3:] == region.shape[1:] and len(given) in (1, len(decoded))
    if not fits or min(given.shape[2], len(region)) < frames:
        raise ValueError(
            f"{list(decoded.shape)} does not go into {list(given.shape)} at a region {list(region.shape)}: wanted the "
            "same height, width and number of clips (or one clip), and no fewer frames"
        )
    size = 2 * EDGE + 1
    wider = F.max_pool2d(region[:frames, None].to(decoded.dtype), size, 1, EDGE)
    weight = F.avg_pool2d(wider, size, 1, EDGE, count_include_pad=False)[:, 0]
    around, made = (video.as_subclass(Tensor)[:, :, :frames] for video in (given.to(decoded), decoded))
    return torch.lerp(around.expand_as(made), made, weight.expand_as(made))
