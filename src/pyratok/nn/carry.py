"""What causal layers remember of a stream, so that a video cut into chunks gives what the whole one gives.

A layer that looks back in time takes an optional :class:`Carry` and prepends what it remembers of the chunks before
to the chunk at hand. Nothing is kept in modules: the tensors go in with one pass and come out of it, new ones, while
the old ones stay as they were. Without a carry a layer sees the whole clip at once.

A chunk is a whole number of latent steps: the first one 1 + k s frames, every later one k s, s the temporal stride.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Carry:
    """One pass over one chunk: a cursor over the tails of the chunks before, which gathers those for the next.

    A tail is the last few steps of a layer's input, ``[B, C, n, H, W]`` in ``channels_last_3d`` memory. Tails lie in
    the order in which the layers run, which is the same for every chunk; so they need no names.

    ``tails``: what :meth:`tails` gave after the chunk before; None at the start of a stream.
    """

    def __init__(self, tails: Sequence[Tensor] | None = None) -> None:
        self._before: list[Tensor | None] | None = None if tails is None else list(tails)
        self._read = 0
        self._after: list[Tensor] = []

    @property
    def at_start(self) -> bool:
        """Does this chunk begin with the first frame of the stream?"""
        return self._before is None

    def extend(self, x: Tensor, steps: int, zeros: int | None = None) -> Tensor:
        """``x`` ``[B, C, T, H, W]`` with the ``steps`` before it in front; its own last ones are kept for what follows.

        At the start ``zeros`` steps of zeros, by default ``steps``, stand in front. Raises ValueError where the tail
        is not of a layer like this one: the state of another model or of another frame size.
        """
        tail = self.before((*x.shape[:2], steps, *x.shape[3:]), x)
        if tail is None:
            zeros = steps if zeros is None else zeros
            wide = F.pad(x, (0, 0, 0, 0, zeros, 0)) if zeros else x
        else:
            wide = torch.cat([tail, x], dim=2)
        # A view would keep the activation of the whole chunk alive.
        self.keep(wide[:, :, -steps:].clone(memory_format=torch.channels_last_3d))
        return wide

    def before(self, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
        """What this layer saw last, of that shape and the type of ``like``; None at the start. For layers that keep
        their own tail, with :meth:`keep`.

        The cursor lets go of it: where nobody else holds the old state, its memory is free as the pass goes on.
        """
        if self._before is None:
            return None
        index = self._read
        if index >= len(self._before):
            raise ValueError(f"the state holds {len(self._before)} tails, this model has more")
        tail, self._before[index], self._read = self._before[index], None, index + 1
        assert tail is not None
        if tail.shape != shape:
            raise ValueError(
                f"tail {index} of the state has shape {tuple(tail.shape)}, this model and frame size need {shape}"
            )
        return tail.to(like)

    def keep(self, tail: Tensor) -> None:
        """The last steps of a layer's input, for the chunk after this one; as many times as :meth:`before`."""
        self._after.append(tail)

    def tails(self) -> tuple[Tensor, ...]:
        """After the pass: what the next chunk needs. Raises ValueError where the pass left some of its own unread."""
        if self._before is not None and len(self._after) != len(self._before):
            raise ValueError(f"the state holds {len(self._before)} tails, this model has {len(self._after)}")
        return tuple(self._after)


def at_start(carry: Carry | None) -> bool:
    """Is the first frame of the stream in this pass? It always is in a pass over the whole clip."""
    return carry is None or carry.at_start
