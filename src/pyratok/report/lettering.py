"""Letters of 5 x 7 pixels, to write on pictures where there is no font."""

from __future__ import annotations

import unicodedata

import numpy as np
from numpy.typing import NDArray

HEIGHT, ADVANCE = 7, 6
"""Pixels of a letter, and from one letter to the next, before enlarging."""

_ROWS = """
A 0e 11 11 1f 11 11 11 | B 1e 11 11 1e 11 11 1e | C 0e 11 10 10 10 11 0e | D 1e 11 11 11 11 11 1e
E 1f 10 10 1e 10 10 1f | F 1f 10 10 1e 10 10 10 | G 0e 11 10 17 11 11 0f | H 11 11 11 1f 11 11 11
I 0e 04 04 04 04 04 0e | J 07 02 02 02 02 12 0c | K 11 12 14 18 14 12 11 | L 10 10 10 10 10 10 1f
M 11 1b 15 15 11 11 11 | N 11 19 15 13 11 11 11 | O 0e 11 11 11 11 11 0e | P 1e 11 11 1e 10 10 10
Q 0e 11 11 11 15 12 0d | R 1e 11 11 1e 14 12 11 | S 0f 10 10 0e 01 01 1e | T 1f 04 04 04 04 04 04
U 11 11 11 11 11 11 0e | V 11 11 11 11 11 0a 04 | W 11 11 11 15 15 1b 11 | X 11 11 0a 04 0a 11 11
Y 11 11 0a 04 04 04 04 | Z 1f 01 02 04 08 10 1f | 0 0e 11 13 15 19 11 0e | 1 04 0c 04 04 04 04 0e
2 0e 11 01 06 08 10 1f | 3 1e 01 01 0e 01 01 1e | 4 02 06 0a 12 1f 02 02 | 5 1f 10 1e 01 01 11 0e
6 06 08 10 1e 11 11 0e | 7 1f 01 02 04 08 08 08 | 8 0e 11 11 0e 11 11 0e | 9 0e 11 11 0f 01 02 0c
. 00 00 00 00 00 0c 0c | , 00 00 00 00 0c 04 08 | - 00 00 00 0e 00 00 00 | : 00 0c 0c 00 0c 0c 00
' 04 04 08 00 00 00 00 | ! 04 04 04 04 04 00 04 | ? 0e 11 01 02 04 00 04 | / 01 01 02 04 08 10 10
( 02 04 08 08 08 04 02 | ) 08 04 02 02 02 04 08 | % 18 19 02 04 08 13 03 | & 0c 12 14 08 15 12 0d
+ 00 04 04 1f 04 04 00 | = 00 00 1f 00 1f 00 00
"""
_GLYPHS = {
    letter: [int(row, 16) for row in rows]
    for line in _ROWS.strip().splitlines()
    for letter, *rows in map(str.split, line.split("|"))
}
_UNKNOWN = [0x1F, *5 * [0x11], 0x1F]


def lettering(text: str, scale: int = 1) -> NDArray[np.bool_]:
    """Where there is ink: ``[7 scale, 6 scale n - scale]`` for n letters.

    All letters are capitals, without their accents; those that are not known, as of other scripts, are boxes.
    """
    plain = [letter for letter in unicodedata.normalize("NFKD", text.upper()) if not unicodedata.combining(letter)]
    ink = np.zeros((HEIGHT, max(1, len(plain) * ADVANCE - 1)), np.bool_)
    for place, letter in enumerate(plain):
        rows = np.array([0] * HEIGHT if letter.isspace() else _GLYPHS.get(letter, _UNKNOWN))
        ink[:, place * ADVANCE : place * ADVANCE + 5] = rows[:, None] >> np.arange(4, -1, -1) & 1
    return ink.repeat(scale, axis=0).repeat(scale, axis=1)
