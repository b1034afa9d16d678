"""LFQ with its entropy terms, forward and backward, against vector-quantize-pytorch's.

That library sums over a table of all 2^K words for every token; here the same per-sample entropy is a sum over bits,
and the entropy of the batch one over bits or over groups of 8 bits, which bounds the joint one from above. How far
above is measured where a table can be held, in float64: for tokens whose bits are independent, and for tokens whose
bits are mixtures of a quarter as many causes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from common import in_fresh_process, interleaved, parser, publish, ratio, rounded
from torch import Tensor

from pyratok.quantization.entropy import batch_entropy, bit_logits, sample_entropy
from pyratok.quantization.lfq import commitment_loss, lfq

TEMPERATURE = 5.0  # sharp enough that few words fall below the 1e-5 at which the library cuts probabilities off
COMMITMENT, ENTROPY = 0.25, 0.1
GROUPS = {"per_bit": 1, "groups_of_8": 8}
REPEATS = 20  # ours is too short to be timed alone


def tokens(bits: int, count: int) -> Tensor:
    """Values before the sign ``[1, K, N]``."""
    torch.manual_seed(0)
    return torch.randn(1, bits, count).requires_grad_()


def ours(presign: Tensor, group_bits: int) -> Tensor:
    """The loss, after its backward pass; also the bits are made, as in training."""
    level = lfq(presign)
    entropy = sample_entropy(level.presign, TEMPERATURE) - batch_entropy(level.presign, TEMPERATURE, 1, group_bits)
    loss = COMMITMENT * commitment_loss(level.presign, level.bits) + ENTROPY * entropy
    (loss + level.bits.mean()).backward()
    return loss


def theirs(library: Any, presign: Tensor) -> Any:
    """The same through the library, which takes channels last; returns the terms of its loss."""
    # Its logits are 2 inv_temperature <z, c>, ours tau <z, c>.
    out, terms = library(presign.movedim(1, -1), inv_temperature=TEMPERATURE / 2, return_loss_breakdown=True)
    (out.entropy_aux_loss + out.quantized.mean()).backward()
    return terms


def library(bits: int) -> Any:
    """vector-quantize-pytorch's module; imported here, so that no memory of ours is counted with it."""
    from vector_quantize_pytorch import LFQ

    made = LFQ(dim=bits, codebook_size=1 << bits, entropy_loss_weight=ENTROPY, commitment_loss_weight=COMMITMENT)
    return made.train()


def one_pass(side: str, bits: int, count: int) -> Callable[[], None]:
    """For :func:`in_fresh_process`: one forward and backward pass; ``side`` is one of GROUPS, or the library."""
    presign = tokens(bits, count)
    made = library(bits) if side == "library" else None

    def work() -> None:
        theirs(made, presign) if made is not None else ours(presign, GROUPS[side])

    return work


def repeated(run: Callable[[], Any]) -> Callable[[], None]:
    def many() -> None:
        for _ in range(REPEATS):
            run()

    return many


def speed(bits: int, count: int, rounds: int) -> dict[str, Any]:
    presign, made = tokens(bits, count), library(bits)
    seconds = interleaved(
        {
            **{name: repeated(lambda g=group: ours(presign, g)) for name, group in GROUPS.items()},
            "library": lambda: theirs(made, presign),
        },
        rounds,
    )
    seconds |= {name: seconds[name] / REPEATS for name in GROUPS}
    terms = theirs(made, presign)
    peaks = {side: in_fresh_process(one_pass, side=side, bits=bits, count=count) for side in (*GROUPS, "library")}
    added = {side: max(peak["peak_mib"] - peak["before_mib"], 0.1) for side, peak in peaks.items()}
    return {
        "seconds": rounded(seconds, 6),
        "times_faster": {name: ratio(seconds["library"], seconds[name]) for name in GROUPS},
        "process_peak_mib": {side: peak["peak_mib"] for side, peak in peaks.items()},
        "added_mib": rounded(added, 1),
        "times_less_process_memory": {
            side: ratio(peaks["library"]["peak_mib"], peaks[side]["peak_mib"]) for side in GROUPS
        },
        "times_less_added_memory": {side: ratio(added["library"], added[side]) for side in GROUPS},
        "sample_entropy": {
            "pyratok": sample_entropy(presign, TEMPERATURE).item(),
            "library": terms.per_sample_entropy.item(),
        },
    }


def causes(bits: int, count: int) -> dict[str, Tensor]:
    """Values ``[1, K, N]`` of two kinds: independent bits, and bits that are mixtures of a quarter as many causes."""
    generator = torch.Generator().manual_seed(1)
    independent = torch.randn(bits, count, generator=generator)
    few = torch.randn(bits, max(1, bits // 4), generator=generator) / (bits // 4) ** 0.5
    return {"independent": independent[None], "few_causes": (few @ independent[: few.shape[1]])[None]}


def joint(presign: Tensor) -> tuple[float, float]:
    """Per-sample entropy and entropy of the batch from the table over all words, float64, nats."""
    logits = bit_logits(presign[0].T, TEMPERATURE).double()
    words = torch.arange(1 << logits.shape[1])[:, None] >> torch.arange(logits.shape[1]) & 1
    signs = (2 * words - 1).double()
    table = (logits / 2 @ signs.T).softmax(dim=1)
    entropy = torch.special.entr
    return float(entropy(table).sum(1).mean()), float(entropy(table.mean(0)).sum())


def difference(bits: int, count: int) -> dict[str, Any]:
    """Entropies in nats: of the table over all words, of ours by its sums, of the library by its own."""
    rows = {}
    for kind, presign in causes(bits, count).items():
        per_sample, of_batch = joint(presign)
        terms = theirs(library(bits), presign.clone().requires_grad_())
        rows[kind] = {
            "sample_entropy": {
                "joint": per_sample,
                "pyratok": float(sample_entropy(presign, TEMPERATURE)),
                "library": terms.per_sample_entropy.item(),
            },
            "batch_entropy": {
                "joint": of_batch,
                **{name: float(batch_entropy(presign, TEMPERATURE, 1, group)) for name, group in GROUPS.items()},
                "library": terms.batch_entropy.item(),
            },
        }
    return rows


def main() -> None:
    options = parser(__doc__).parse_args()
    bits, count, widths = (8, 256, (4, 6)) if options.quick else (16, 4096, (10, 11, 12))
    result = {
        "bits": bits,
        "tokens": count,
        "temperature": TEMPERATURE,
        "results": speed(bits, count, rounds=1 if options.quick else 3),
        "against_joint": {str(width): difference(width, count) for width in widths},
    }
    publish("lfq", result, options)


if __name__ == "__main__":
    main()
