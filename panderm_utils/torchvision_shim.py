"""Makes `import torchvision` work where its compiled operators cannot load: the one place that deals with it.

PyPI's torchvision is compiled against PyPI's CUDA build of torch. Beside a CPU build of torch its library `_C.so`
does not load, torchvision goes on without it, and then stops with "operator torchvision::nms does not exist", because
its Python code registers kernels for two operators that only the library declares. timm imports torchvision, so
nothing here would run. The remedy is to declare those two operators, without kernels, before torchvision is imported.

Declaring them where the library does load would break a good installation, so the library is tried first, and both
happen only at the moment when something asks for torchvision: `import panderm_utils` itself imports no torch.
With the declarations everything that this package uses works: transforms on PIL images and tensors, and all of timm.
`torchvision.io`, `torchvision.ops.nms` and `ops.deform_conv2d` stay unavailable: images are read with PIL.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def install() -> None:
    """Prepares the first `import torchvision` of this process; does nothing if that has already happened."""
    if "torchvision" in sys.modules or any(isinstance(finder, _FirstImport) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _FirstImport())


def declare_missing_operators(package_folder: Path) -> bool:
    """Declares torchvision's operators if its compiled library does not load.

    Args:
        package_folder: the installed torchvision package, which holds `_C.so`.

    Returns:
        True if the operators had to be declared; False if the real library provides them.
    """
    import torch

    libraries = sorted(path for path in package_folder.glob("_C*") if path.suffix in (".so", ".dylib", ".pyd"))
    for library in libraries:
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue  # compiled for another build of torch
        return False
    for name in OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", SCHEMA)
    return True


class _FirstImport:
    """A finder for sys.meta_path that acts on the first `import torchvision` and takes itself out."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)  # the ordinary answer, now that this finder is gone
        # On Windows torchvision prepares its DLL folders itself, so a try made before that would misjudge the library.
        if spec is not None and spec.origin is not None and sys.platform != "win32":
            declare_missing_operators(Path(spec.origin).parent)
        return spec
