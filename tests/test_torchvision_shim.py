"""torchvision imports whether or not its compiled operators load; each case in a fresh interpreter."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def unaided() -> subprocess.CompletedProcess:
    """The import of torchvision without the package, whose success decides what is to be seen here."""
    return python("import torchvision")


def test_importing_the_package_imports_no_torch() -> None:
    code = (
        "import sys, panderm_utils; print([m for m in ('torch', 'torchvision', 'timm', 'pandas') if m in sys.modules])"
    )
    result = python(code)
    assert result.stdout.strip() == "[]", result.stderr


def test_torchvision_and_timm_import_after_the_package_and_the_finder_is_gone(unaided) -> None:
    """With the real library's own kernels where it loads, with bare declarations where it does not."""
    code = """
import sys, panderm_utils
before = [f for f in sys.meta_path if type(f).__module__ == "panderm_utils.torchvision_shim"]
import torchvision, timm, torch
after = [f for f in sys.meta_path if type(f).__module__ == "panderm_utils.torchvision_shim"]
import torchvision.transforms.v2 as v2
print(len(before), len(after), torch.ops.torchvision.nms is not None, v2.Resize(8)(torch.zeros(3, 16, 16)).shape)
count = len(sys.meta_path)
panderm_utils.torchvision_shim.install()  # by now needless
print(len(sys.meta_path) - count)
boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 2.]])
try:
    print(torch.ops.torchvision.nms(boxes, torch.tensor([1., .5]), .5).tolist())
except (RuntimeError, NotImplementedError):
    print("no kernel")
"""
    result = python(code)
    imported, later, kernel = result.stdout.splitlines() or pytest.fail(result.stderr)
    assert imported == "1 0 True torch.Size([3, 8, 8])"
    assert later == "0"
    assert kernel == ("no kernel" if unaided.returncode else "[0]")


# A stand-in for an installed torchvision. Like the real one's library, it registers its operators when it is imported,
# which torch refuses if somebody has declared them before.
PACKAGE = """
import torch
torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
print("registered its own")
"""


@pytest.mark.parametrize(("library", "outcome"), [("loads", "registered its own"), ("fails", "RuntimeError")])
def test_operators_are_declared_only_where_the_library_does_not_load(
    tmp_path: Path, library: str, outcome: str
) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    if library == "loads":
        torch_folder = Path(importlib.util.find_spec("torch").origin).parent
        (package / "_C.so").symlink_to(next((torch_folder / "lib").glob("libc10.*")))  # any library that loads
    else:
        (package / "_C.so").write_bytes(b"\x7fELF, but for another machine")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import panderm_utils
try:
    import torchvision
except RuntimeError as error:
    import torch
    print(type(error).__name__, torch.ops.torchvision.nms is not None, torch.ops.torchvision.qnms is not None)
"""
    result = python(code)
    assert result.stdout.startswith(outcome), result.stdout + result.stderr
    assert library == "loads" or result.stdout.strip().endswith("True True")


def test_without_the_package_the_error_is_the_one_this_is_about(unaided) -> None:
    if unaided.returncode == 0:
        pytest.skip("this torchvision's compiled operators load, so there is nothing to repair")
    assert "operator torchvision::nms does not exist" in unaided.stderr


def test_an_environment_without_torchvision_gets_the_ordinary_error() -> None:
    code = """
import sys, panderm_utils
sys.path[:] = [p for p in sys.path if "site-packages" not in p]
try:
    import torchvision
except ModuleNotFoundError as error:
    print(error)
"""
    result = python(code)
    assert result.stdout.strip() == "No module named 'torchvision'", result.stderr
