"""Makes `import torchvision` work where its compiled operators cannot load.

PyPI's torchvision is compiled against PyPI's CUDA build of torch. Beside a CPU build of torch its library `_C.so`
does not load, torchvision goes on without it, and then stops with "operator torchvision::nms does not exist", because
its Python code registers kernels for two operators that only the library declares. timm imports torchvision, so this
package would not work. The remedy is to declare those two operators, without kernels, before torchvision is imported.

Declaring them where the library loads would break a working installation, so the library is tried first. Both happen
only when something imports torchvision: `import panderm_utils` itself does not import torch. With the declarations,
everything that this package uses works: transforms of PIL images and tensors, and all of timm.
`torchvision.io`, `torchvision.ops.nms` and `ops.deform_conv2d` stay unavailable: images are read with PIL.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def install() -> None:
    """Prepares the first `import torchvision` of this process; does nothing if it is already imported."""
    if "torchvision" in sys.modules or any(isinstance(finder, _FirstImport) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _FirstImport())


def declare_missing_operators(package_folder: Path) -> bool:
    """Declares torchvision's operators if its compiled library does not load; returns whether it did.

    Args:
        package_folder: the installed torchvision package, which holds `_C.so`.
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
    """A finder for sys.meta_path that acts on the first `import torchvision` and removes itself."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)  # the ordinary spec, now that this finder is removed
        # On Windows torchvision first prepares its DLL folders, so loading the library here would fail without need.
        if spec is not None and spec.origin is not None and sys.platform != "win32":
            declare_missing_operators(Path(spec.origin).parent)
        return spec
