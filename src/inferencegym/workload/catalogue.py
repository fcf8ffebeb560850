"""Public traces that can be fetched from where they were published: address, licence, and whom to credit. Sizes are
bytes.

A checksum stands here only where it is known for certain; otherwise the first fetch notes it (`fetch.LOCK`), and later
ones are held to that note.
"""

from __future__ import annotations

from dataclasses import dataclass

from inferencegym.ground.registry import Registry
from inferencegym.workload.public import CREDITS


@dataclass(frozen=True, slots=True)
class Original:
    """A file as its authors published it."""

    name: str
    """The publisher's file name without its ending; `read` finds the fetched file by it."""
    url: str
    licence: str
    attribution: str
    about: str
    sha256: str | None = None

    @property
    def file_name(self) -> str:
        """What the file is called on disk."""
        return self.url.rsplit("/", 1)[1]


ORIGINALS: Registry[Original] = Registry("original trace")

_AZURE = "https://raw.githubusercontent.com/Azure/AzurePublicDataset/master/data"
_AZURE_2024 = "https://github.com/Azure/AzurePublicDataset/releases/download/dataset-llm-2024"
_BURSTGPT = "https://github.com/HPMLL/BurstGPT/releases/download/v2.0"
_MOONCAKE = "https://raw.githubusercontent.com/kvcache-ai/Mooncake/main/FAST25-release"

for _name, _folder, _about in (
    ("AzureLLMInferenceTrace_conv", _AZURE, "one hour of conversation, November 2023"),
    ("AzureLLMInferenceTrace_code", _AZURE, "one hour of code completion, November 2023"),
    (
        "AzureLLMInferenceTrace_conv_1week",
        _AZURE_2024,
        "a week of conversation, May 2024, 27 million requests, about 1 GB",
    ),
    ("AzureLLMInferenceTrace_code_1week", _AZURE_2024, "a week of code completion, May 2024, 17 million requests"),
):
    ORIGINALS.register(_name, Original(_name, f"{_folder}/{_name}.csv", "CC-BY-4.0", CREDITS["azure"], _about))
for _name, _about in (
    ("BurstGPT_1", "61 days of a campus service, 1.4 million requests"),
    ("BurstGPT_2", "the next two months, 3.9 million requests"),
    ("BurstGPT_3", "with sessions, 5.3 million requests"),
):
    ORIGINALS.register(_name, Original(_name, f"{_BURSTGPT}/{_name}.csv", "CC-BY-4.0", CREDITS["burstgpt"], _about))
for _name, _folder, _about in (
    ("conversation_trace", "traces", "one hour of chat with prefix blocks"),
    ("toolagent_trace", "traces", "one hour of tools and agents with prefix blocks"),
    ("synthetic_trace", "traces", "mixed public data sets on made-up arrivals, with prefix blocks"),
    ("mooncake_trace", "arxiv-trace", "one hour of chat, tools and agents with prefix blocks"),
):
    _made = Original(_name, f"{_MOONCAKE}/{_folder}/{_name}.jsonl", "Apache-2.0", CREDITS["mooncake"], _about)
    ORIGINALS.register(_name, _made)
