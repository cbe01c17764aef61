"""A weights file becomes an encoder, images become features, and features are cached."""

import lazy_loader

OFFERS = {
    "checkpoints": "EncoderError digest_of read_tensors where_to_get",
    "feature_cache": "read_kept",
    "features": "Features extract_features extract_files",
    "loading": "Encoder IMAGE_SIZE arithmetic build_model check_precision choose_device describe load_encoder "
    "tensors_digest",
    "state_dicts": "LOADING_COLUMNS PREFIXES is_finite strange_kind",
    "weights": "timm_settings",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)
