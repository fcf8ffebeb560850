"""A small alphabet for pictures: three by five dots a letter, drawn twice as large, so that no font library is needed. Sizes are pixels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Five rows of three dots, from the top, each row one octal digit (4 left, 2 middle, 1 right).
_DOTS = {
    "a": "25755", "b": "65656", "c": "34443", "d": "65556", "e": "74647", "f": "74644", "g": "34553", "h": "55755", "i": "72227",
    "j": "11152", "k": "55655", "l": "44447", "m": "57755", "n": "65555", "o": "25552", "p": "65644", "q": "25563", "r": "65655",
    "s": "34216", "t": "72222", "u": "55557", "v": "55522", "w": "55775", "x": "55255", "y": "55222", "z": "71247",
    "0": "75557", "1": "26227", "2": "71747", "3": "71717", "4": "55711", "5": "74717", "6": "74757", "7": "71222", "8": "75757", "9": "75717",
    " ": "00000", "_": "00007", ".": "00002", "-": "00700", "+": "02720", "/": "11244", ":": "02020", ",": "00024", "%": "51245", "=": "07070",
}  # fmt: skip
SCALE = 2
STEP = 4 * SCALE


def write(image: npt.NDArray[np.uint8], left: int, top: int, words: str, colour: tuple[int, int, int]) -> None:
    """Draw one line of text into an image (uint8[height, width, 3], changed in place); what does not fit is cut off."""
    for i, letter in enumerate(words.lower()):
        rows = _DOTS.get(letter, _DOTS["-"])
        dots = np.array([[int(row) >> bit & 1 for bit in (2, 1, 0)] for row in rows], np.bool_)
        dots = dots.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
        at = left + i * STEP
        target = image[top : top + dots.shape[0], at : at + dots.shape[1]]
        if target.shape[:2] != dots.shape:
            return
        target[dots] = colour
