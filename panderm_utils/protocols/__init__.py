"""The protocols, each in a place of its own: its description, and everything peculiar to it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "finding": ["list_protocols", "load_protocol"],
    },
)
