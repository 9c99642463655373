from .collective import ENTRY_POINT, collective_artifact
from .file import TOPOLOGIES, Artifact, ArtifactError, content_hash, load, save
from .source_lines import SOURCES, fault_text, place_of, source_entry, with_places

__all__ = [
    "ENTRY_POINT",
    "SOURCES",
    "TOPOLOGIES",
    "Artifact",
    "ArtifactError",
    "collective_artifact",
    "content_hash",
    "fault_text",
    "load",
    "place_of",
    "save",
    "source_entry",
    "with_places",
]
