"""Linear probing: the paper's logistic regression on frozen features."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "probe": ["LinearProbe", "fit_linear_probe"],
        "protocol": ["PROTOCOL"],
    },
)
