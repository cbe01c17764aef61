"""A CSV and a folder of images become a checked dataset; a dataset of your own gets its manifest."""

import lazy_loader

OFFERS = {
    "csv_tables": "DataError is_missing",
    "dataset": "Dataset class_counts describe leakage_table load_dataset metadata_table split_table",
    "image_files": "ImageError ImageFolder explain open_image",
    "loading": "loaded",
    "own_data": "make_own_manifest",
    "splits": "FRACTION_SEED connected_groups first_part label_fraction propose_splits",
    "transforms": "CROPPED EVALUATION_MEAN EVALUATION_STD ImageCopies ImageFiles evaluation_transform resize_shorter "
    "resized_size stamp_of trim",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)
