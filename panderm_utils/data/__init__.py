"""Turns a CSV and a folder of images into a checked dataset, and makes a manifest for your own data."""

import lazy_loader

OFFERS = {
    "column_questions": "OpenQuestions",
    "csv_tables": "DataError is_missing",
    "dataset": "Dataset class_counts describe leakage_table load_dataset metadata_table shortfall split_table",
    "draws": "draw_splits",
    "image_files": "ImageError ImageFolder fold image_error_reason open_image unsafe",
    "image_folder": "ListedImages list_images",
    "isic_ids": "isic_id",
    "listed_files": "list_rows missing_files",
    "loading": "batch_loader",
    "mask_files": "open_mask",
    "own_data": "OwnData read_own_data",
    "own_masks": "mask_name",
    "split_folders": "list_split_folders",
    "splits": "FRACTION_SEED connected_groups first_fraction label_fraction propose_splits",
    "transforms": "CROP_SIZE EVALUATION_MEAN EVALUATION_STD RESIZE_SIZE ImageCopies ImageFiles evaluation_transform "
    "limit_aspect pixels_of resize_and_crop resize_shorter resized_size stamp_of",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)
