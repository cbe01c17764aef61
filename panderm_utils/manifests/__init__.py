"""Reads and checks the YAML of data_manifests/: datasets, encoders, profiles, published results; defines `Protocol`."""

import lazy_loader

OFFERS = {
    "cards": "ADDRESS Card FAULTS NOT_A_DEVICE Section UNKNOWN dataset_card encoder_card short_card",
    "entries": "Access ClassName DatasetManifest Draw EncoderManifest Masks METADATA_KINDS POPULATION Profile "
    "ProtocolChoice SPLITS",
    "parameters": "DEVICE ENCODER FLAG FRACTION FRACTIONS PARAMETERS FILE PRECISION ParameterError Rule SEED number "
    "one_of text whole",
    "problems": "NAME_RULE task_of valid_name",
    "protocol": "DoesNotApply Pair Protocol Work batches_of training_work",
    "published": "PaperItem PublishedResult",
    "reading": "MANIFEST_ROOT check_manifests list_datasets list_encoders load_dataset_manifest "
    "load_encoder_manifest load_paper_items load_profile load_published_results published_value "
    "weights_places write_dataset_manifest",
    "references": "Reference bibtex bibtex_keys",
    "releases": "Release",
    "typed_yaml": "ManifestError read_fractions read_numbers unknown_name",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)
