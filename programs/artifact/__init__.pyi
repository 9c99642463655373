from .bindings import Bindings, DecoderFacts, Planes, compiled_at, decoder_of, planes_of
from .collective import ENTRY_POINT, collective_artifact
from .file import TOPOLOGIES, Artifact, ArtifactError, content_hash, load, save

__all__ = [
    "ENTRY_POINT",
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
    "load",
    "planes_of",
    "save",
]
