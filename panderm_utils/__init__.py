"""The slim package behind the notebooks that reproduce PanDerm's published evaluation.

Importing it is light (no torch) and prepares the first `import torchvision`, so import it before timm; see
`torchvision_shim` for why.
"""

from panderm_utils import torchvision_shim

__version__ = "0.1.0"

torchvision_shim.install()
