"""Loads encoders from weights files, extracts features of images and caches them."""

import lazy_loader

OFFERS = {
    "attention": "Attention AttentionError attend patch_colours",
    "checkpoints": "EncoderError digest_of read_tensors where_to_get",
    "devices": "available_precision check_precision choose_device precision_context",
    "feature_cache": "IDENTITY SHARD ShardCache current_features read_cached read_identified",
    "feature_files": "FeatureSet check_feature_file features_of_datasets features_of_folder write_features",
    "features": "BATCH Features extract_features extract_files",
    "loading": "Encoder arbitrary_weights beit_settings build_model describe load_encoder tensors_digest",
    "state_dicts": "LOADING_COLUMNS PREFIXES is_finite kind_mismatch",
    "weights": "timm_settings",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)
