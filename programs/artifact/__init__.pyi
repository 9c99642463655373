from .bindings import (
    OUTPUT_TYPES,
    Bindings,
    DecoderFacts,
    Planes,
    compiled_at,
    decoder_of,
    planes_of,
)
from .collective import ENTRY_POINT, collective_artifact
from .file import TOPOLOGIES, Artifact, ArtifactError, content_hash, load, save
from .sources import SOURCES, fault_text, place_of, source, with_places, without_sources

__all__ = [
    "ENTRY_POINT",
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
    "source",
    "with_places",
    "without_sources",
]
