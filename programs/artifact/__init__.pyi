from .collective import ENTRY_POINT, collective_artifact
from .file import TOPOLOGIES, Artifact, ArtifactError, content_hash, load, save

__all__ = [
    "ENTRY_POINT",
    "TOPOLOGIES",
    "Artifact",
    "ArtifactError",
    "collective_artifact",
    "content_hash",
    "load",
    "save",
]
