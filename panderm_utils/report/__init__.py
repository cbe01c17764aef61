"""The HTML page of everything that a profile has."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "writing": ["write_report"],
    },
)
