"""The characters of the glyph classes and their splits, fixed for good.

``curation.py`` says how they were chosen. Changing this list changes which characters a trained
model has seen, so that accuracies on the test classes can no longer be compared.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from functools import cache

_CODE_POINTS = """
    0030-0039 0041-0045 0047-005A 0061-0062 0064-0067 0069-006B 006D-006E 0070-0072 0074-0076 0079
    00C6 00D8 00DE-00DF 00E6 00F0 00F8 00FE 0111 0127 0138 0141-0142 014A-014B 0152 0181 0184
    0186-0188 018A-018B 018E-0192 0194-0196 019B-019D 01A2-01A4 01A6-01A7 01A9-01AB 01AD 01B1-01B4
    01B6-01B8 01BA 01BC 01BE-01C2 01E5 01F6 021C 0221 0223-0225 0234-023B 023E-0242 0244 0246-0247
    0249-024A 024D 0250-0252 0255-0258 025A 025D-0260 0264-0265 0267 0269 026C-0273 0277-027C
    027E-027F 0281-0283 0285-0289 028C-028E 0290-0291 0293-0297 029A-029B 029D-029E 02A0 02A3-02AF
    0370 0372 0376 037C-037D 0393-0394 039E 03A6 03A8-03A9 03B1-03B4 03B6 03BB-03BE 03C0 03C2-03C7
    03C9 03CF 03D7-03DB 03DD-03E2 03E6-03E8 03EB 03EE 03FA-03FC 0402 0409-040B 040F 0414 0416 041B
    0423 0427 0429-042B 042E-042F 0433-0434 043C 0442 0444 0446 0449-044C 0452 045A-045B 0463-0464
    0466 0468 046A 046C 046E 0470-0471 0474 0478-047A 047C 047E 048A 048D 0490-0494 0496 0498-049A
    049E-04A0 04A2-04A4 04A6 04A8 04AA-04AD 04B2 04B4-04B6 04B9-04BA 04BC 04BE 04C3 04C5 04C7
    04CA-04CB 04CD 04F6-04F7 04FA-04FB 04FD 0502 0504 0506 0508 050E 0512-0514 0516-0519 0520 0524
    0532-053B 053D-0541 0543-054A 054C 054E 0550 0552 0554 0556 0564-0565 0567-0569 056B-056D
    056F-0571 0573-0574 0576 0579 057B 057E 0586 05D0-05D3 05D6 05D9-05DA 05DC 05DE 05E0 05E2-05E3
    05E5-05EA 05F0-05F1 0621 0628-062C 062E-0637 0639-063A 0641-064A 0660-0662 0664-0666 0669
    066E-066F 067B-067C 0681 0688-0689 068B 068E 0691-0693 0695 069A 069E 06A0-06A5 06A8-06AA
    06AE-06AF 06B2-06B5 06B8-06BB 06BE 06C6 06C8 06CE 06D0 06F4 06F6 07C1-07C4 07C6-07C7 07C9 07CC
    07CF 07D1-07D2 07D4 07D6-07D8 07DA 07DD-07DF 07E2-07E5 0E82 0E84 0E87-0E88 0E8A 0E8D 0E95-0E97
    0E99 0E9B-0E9E 0EA1 0EA3 0EA5 0EA7 0EAA 0EAE-0EB0 0EB2 0EBD 0EC0-0EC4 0ED1-0ED4 0ED6-0ED9
    10A0-10A3 10A5-10B2 10B5 10B8 10BA 10BC-10BD 10BF-10C5 10D0-10D4 10D6-10DA 10DD-10E7 10E9
    10EB-10ED 10EF-10F6 10F8-10FA 1402 1405-1406 140A-1415 1417-141A 141F-1420 1423 1425 1428-1429
    142B-142C 142E 1432-1434 1438-1439 1440-1443 1445 144D 144F 1451 1456-1457 1459-1464 146B-146C
    146E-1471 1473-1474 1476-1481 1485 1489-148A 148C 1490-14A0 14A7 14A9 14AC-14AF 14B1-14BA
    14C0-14C5 14C7-14CE 14D3-14D8 14DA-14E9 14EC-14F1 14F3-14FB 1500 1502-1504 1510-1524 1526-153D
    1543 1545-1547 1549-154F 1552-1559 155B-155C 1564 156A 1574-1578 157B 157E-1585 158A-1596 15A0
    15A2-15A5 15A7-15AD 1647 166F-1676 1682-168F 1691-169A 1D03 1D08-1D0A 1D12-1D17 1D1A 1D1E-1D1F
    1D24-1D25 1D6B 1D7B 1D7D 1D85 1E9E 1EFA-1EFB 214E 2C64-2C66 2C68 2C6A-2C6B 2C6E 2C71-2C72 2C74
    2C7A 2C7E 2D00-2D09 2D0B-2D0C 2D0E-2D13 2D15-2D19 2D1B-2D1D 2D1F-2D25 2D32-2D33 2D3B-2D3F
    2D42-2D44 2D46 2D48 2D4B-2D4C 2D50 2D52-2D53 2D55-2D58 2D5A-2D5B 2D62-2D64 A4D8 A64C A650-A651
    A654 A656-A657 A662 A664 A666 A66E A722 A724 A728-A729 A72C A72E-A730 A734 A736-A739 A73C-A73D
    A746-A748 A74A-A74B A750 A753 A765-A766 A768 A782 A786 A78E A790 A7A2-A7A6 A7AA A7FD A7FF FE73
    10302 10304 1030B-1030E 10310 10312-10316 10319-1031A 1031D
"""

SPLITS = ("train", "val", "test")
_TRAIN_PERCENT = 64
_VAL_PERCENT = 16


def _characters() -> Iterator[str]:
    for item in _CODE_POINTS.split():
        first, _, last = item.partition("-")
        yield from map(chr, range(int(first, 16), int(last or first, 16) + 1))


ALPHABET = tuple(_characters())

_MARK = re.compile(r" WITH .*")
_FORM = re.compile(r"\b(?:CAPITAL|SMALL|DOTLESS) ")
# A dot makes a vowel long, or puts a W before it; dialects put the dot elsewhere.
_SYLLABLE = re.compile(r"(CANADIAN SYLLABICS )(?:[A-Z-]+ )?([A-Z]*?)W?([AEIOU])\3?(I?)")


def letter_of(character: str) -> str:
    """The name of the letter that a character is a form of.

    Capital and small forms, a letter with and without a stroke, hook or dot, and syllables that
    differ by a dot are one letter.
    """
    name = unicodedata.name(character, character)
    syllable = _SYLLABLE.fullmatch(name)
    return "".join(syllable.groups()) if syllable else _FORM.sub("", _MARK.sub("", name))


@cache
def _first_forms() -> dict[str, str]:
    """The first character of every letter."""
    return {letter_of(character): character for character in reversed(ALPHABET)}


def split_of(character: str) -> str:
    """``"train"``, ``"val"`` or ``"test"``, about 64 : 16 : 20.

    Drawn by a hash of the code point of the first form of the character's letter
    (:func:`letter_of`): forms of one letter look much alike, and a learner that was trained on one
    would be tested on another.
    """
    first = _first_forms().get(letter_of(character), character)
    digest = hashlib.blake2s(f"U+{ord(first):04X}".encode()).digest()
    percent = int.from_bytes(digest[:8], "little") % 100
    if percent < _TRAIN_PERCENT:
        return "train"
    return "val" if percent < _TRAIN_PERCENT + _VAL_PERCENT else "test"


def class_name(character: str) -> str:
    """Such as ``U+0416 CYRILLIC CAPITAL LETTER ZHE``."""
    return f"U+{ord(character):04X} {unicodedata.name(character)}"
