"""The slim package behind the notebooks that reproduce PanDerm's published evaluation.

Importing it is light (no torch). It prepares the first `import torchvision`, so import it before timm (see
`torchvision_shim`), and in a kernel how errors and warnings are shown (see `messages`).
"""

import sys

from panderm_utils import messages, torchvision_shim

__version__ = "0.1.0"

# jsonschema, which nbformat imports, would compile a grammar of addresses for two seconds that no notebook needs.
sys.modules.setdefault("rfc3987_syntax", None)
torchvision_shim.install()
messages.install()
