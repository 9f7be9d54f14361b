"""Code systems of languages: from any label to the codes of fastText's lid.176, where the two meet.

Labels are strings used as given. Only here are they read as codes, and only where another system is asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from langcodes import Language, closest_supported_match

PREFIX = "__label__"  # fastText's mark of a label
_LID176 = (
    "af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da de "
    "diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo "
    "io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms "
    "mt mwl my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn "
    "sco sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf "
    "yi yo yue zh"
)
LID176 = frozenset(_LID176.split())
# lid.176 has Wikipedia's codes; these are what ISO 639 calls otherwise and the library does not know.
_WIKIPEDIA = {"gsw": "als", "als": "sq", "hbs": "sh", "egl": "eml", "rgn": "eml", "kok": "gom", "knn": "gom",
              "nci": "nah", "nhn": "nah", "pbt": "ps", "pbu": "ps", "quy": "qu", "quz": "qu"}  # fmt: skip
_NEAR = 9  # of the library's distances: the representative of a macrolanguage (cmn, zh), not a dialect (ary, ar)


@cache
def fasttext_code(label: str) -> str | None:
    """The code in lid.176 of a label in ISO 639-1, ISO 639-3, FLORES, WiLI, fastText or BCP-47 form.

    A label that is such a code as it stands stays it (`als` is Alemannic as in fastText, `als_Latn` Tosk Albanian
    as in FLORES). Script and region are not looked at. Codes are lower-case, so that `DE` and `IN` may be countries.

    Returns:
        The code, or None for a language that lid.176 does not know and for whatever is not a language code.
    """
    bare = label.removeprefix(PREFIX)
    if bare in LID176:
        return bare
    tag = bare.replace("_", "-")
    first = tag.split("-")[0]
    if first in _WIKIPEDIA:
        return _WIKIPEDIA[first]
    if not (first.isascii() and first.islower()):
        return None
    try:
        language = Language.get(tag).language
    except ValueError:
        return None
    if not language or language in LID176:
        return language or None
    # `supported` in a fixed order: between equally near codes the library takes the first.
    match = closest_supported_match(language, sorted(LID176), max_distance=_NEAR)
    return match or None


def to_labels(codes: Iterable[str], labels: Iterable[str]) -> dict[str, str]:
    """Which of `labels` each code of a fastText model stands for: code -> label, codes without `__label__`.

    A label equal to a code takes it; the others take the code of their language if it is still free, earlier ones
    first. A label for which no code is left has none.
    """
    free, labels = set(codes), list(labels)
    found = {label: label for label in labels if label in free}
    for label in labels:
        code = fasttext_code(label)
        if label not in found and code in free and code not in found:
            found[code] = label
    return found
