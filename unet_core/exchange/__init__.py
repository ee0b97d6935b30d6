"""Models to and from other software: ONNX, bioimage.io packages, plain PyTorch state dicts.

What is read is never run: weights come from safetensors, or from a PyTorch file whose unpickler knows
tensors and nothing else. The libraries of this package are an extra (`unet-flows[exchange]`).
"""

from unet_core.exchange.graph import OPSET, build_graph
from unet_core.exchange.onnx_file import export_onnx, run_onnx, smallest_input
from unet_core.exchange.package import About, export_package
from unet_core.exchange.reading import Imported, import_model
from unet_core.exchange.tile import TileNetwork, TileShape

__all__ = [
    "OPSET",
    "About",
    "Imported",
    "TileNetwork",
    "TileShape",
    "build_graph",
    "export_onnx",
    "export_package",
    "import_model",
    "run_onnx",
    "smallest_input",
]
