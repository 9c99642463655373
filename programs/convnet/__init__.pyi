from .compiler import compile_network, read_logits
from .golden import golden_network
from .layers import Network
from .places import place_network
from .resnet import mlp, random_input, randomise, resnet50

__all__ = [
    "Network",
    "compile_network",
    "golden_network",
    "mlp",
    "place_network",
    "random_input",
    "randomise",
    "read_logits",
    "resnet50",
]
