from .bindings import (
    MOST_CHUNK,
    OUTPUT_TYPES,
    Bindings,
    DecoderFacts,
    Planes,
    compiled_at,
    decoder_of,
    planes_of,
)
from .collective import ENTRY_POINT, collective_artifact
from .file import Artifact, content_hash, load, save
from .header import TOPOLOGIES, ArtifactError
from .sources import SOURCES, fault_text, place_of, source_entry, with_places, without_sources

__all__ = [
    "ENTRY_POINT",
    "MOST_CHUNK",
    "OUTPUT_TYPES",
    "SOURCES",
    "TOPOLOGIES",
    "Artifact",
    "ArtifactError",
    "Bindings",
    "DecoderFacts",
    "Planes",
    "collective_artifact",
    "compiled_at",
    "content_hash",
    "decoder_of",
    "fault_text",
    "load",
    "place_of",
    "planes_of",
    "save",
    "source_entry",
    "with_places",
    "without_sources",
]
