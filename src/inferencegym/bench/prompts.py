"""Prompts of a wanted length, whose beginnings are equal where a workload says that prefixes are.

A word here is about one token of a byte-pair vocabulary; how many tokens a server counted is in its answer's usage, and that is what is reported.
"""

from __future__ import annotations

from inferencegym.ground.rng import stream
from inferencegym.workload import Workload

_TEXT = """
time year people way day man thing woman life child world school state family student group country problem hand
part place case week company system program question work number night point home water room mother area money
story fact month lot right study book eye job word business issue side kind head house service friend father
power hour game line end member law car city name team minute idea body back parent face others level office
door health person art war history party result change morning reason research girl guy moment air teacher force
order paper space ground form event matter center couple site project base star table need court oil half window
player road record film town class field plan tree land cause rest action model season society future wall light
stage board hospital sound price deal bank list color sense letter rate summer north south east west king sea
ball type view test sport chance trade
"""
#: Short, frequent English words: nearly always one token each, with the space before them.
WORDS = tuple(_TEXT.split())
#: Prompts are cached by block, so that the same prefix is made once.
_REMEMBERED = 4096


class Prompts:
    """Texts for the rows of a workload; the same seed and salt give the same texts."""

    def __init__(self, workload: Workload, seed: int = 0, salt: str = "") -> None:
        """`salt`: another one gives texts that share nothing with those a server may still have in its cache."""
        self._workload, self._seed, self._salt = workload, seed, salt
        self._blocks: dict[int, str] = {}

    def text(self, row: int) -> str:
        """The prompt of a row: the blocks its prefix ids name, then words of its own, `prompt_tokens` words in all."""
        work = self._workload
        wanted = int(work.prompt_tokens[row])
        each = work.prefix_block_tokens
        ids = work.prefix_ids[work.prefix_offsets[row] : work.prefix_offsets[row + 1]].tolist()
        whole = ids[: wanted // each] if each else []
        parts = [self._block(one, each) for one in whole]
        left = wanted - len(whole) * each
        if left:
            parts.append(self._words(f"bench.prompt.{row}", left))
        return " ".join(parts)

    def _block(self, name: int, tokens: int) -> str:
        found = self._blocks.get(name)
        if found is None:
            if len(self._blocks) >= _REMEMBERED:
                self._blocks.pop(next(iter(self._blocks)))
            found = self._blocks[name] = self._words(f"bench.block.{name}", tokens)
        return found

    def _words(self, name: str, count: int) -> str:
        drawn = stream(self._seed, name + self._salt).integers(0, len(WORDS), count)
        return " ".join([WORDS[i] for i in drawn.tolist()])
