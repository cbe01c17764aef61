"""Augmentation, epoch order and test-time views against torchvision's own transforms, in real worker processes."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import panderm_utils  # noqa: F401  (prepares torchvision)
from panderm_utils.data import transforms as image_copies
from panderm_utils.data.image_files import ImageError
from panderm_utils.data.transforms import evaluation_transform
from panderm_utils.protocols.fine_tune import augmentation as augment
from panderm_utils.protocols.training import IMAGE, VIEWS, generator_for
from tests.data.test_images import noise

# isort: split
from torchvision import transforms
from torchvision.transforms import functional as F

MEAN = (0.485, 0.456, 0.406)


def published_training_transform():
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=(0.75, 1.0), ratio=(3 / 4, 4 / 3)),
            transforms.RandomHorizontalFlip(0.5),
            transforms.RandomVerticalFlip(0.5),
            transforms.RandomRotation(45),
            transforms.ColorJitter(hue=0.2),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, (0.228, 0.224, 0.225)),
        ]
    )


def published_view():
    return transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Resize(246, antialias=True),
            transforms.CenterCrop(224),
            transforms.RandomHorizontalFlip(0.5),
            transforms.RandomVerticalFlip(0.5),
            transforms.RandomApply([transforms.RandomRotation((0, 270))], p=0.3),
            transforms.RandomApply([transforms.ColorJitter(saturation=0.25, hue=0.25)], p=0.3),
            transforms.Normalize(MEAN, (0.229, 0.224, 0.225)),
        ]
    )


def lesion(width, height, seed=0):
    """Smooth colours with noise, so that hue and saturation mean something."""
    coarse = noise(6, 6, seed).resize((width, height), Image.Resampling.BICUBIC)
    return Image.blend(coarse, noise(width, height, seed + 1), 0.15)


@pytest.mark.parametrize(
    ("size", "seeds"),
    [((341, 256), 30), ((256, 256), 10), ((256, 300), 10), ((2000, 256), 10), ((256, 900), 10)],
    ids=str,
)
def test_the_training_transform_is_bit_equal_to_torchvisions(size, seeds):
    published, ours, image = published_training_transform(), augment.train_transform(), lesion(*size)
    for seed in range(seeds):
        torch.manual_seed(seed)
        expected = published(image)
        for given in (image, np.asarray(image)):
            result = ours(given, torch.Generator().manual_seed(seed))
            assert torch.equal(result, expected), seed
    assert result.shape == (3, 224, 224)
    assert result.dtype == torch.float32
    assert result.is_contiguous()


@pytest.mark.parametrize(("hue", "side"), [(-0.2, 1024), pytest.param(0.137, 4096, marks=pytest.mark.slow)])
def test_shifted_hue_is_torchvisions_for_every_colour(hue, side):
    """All colours once; in the other direction, one of sixteen."""
    colours = np.arange(side**2) * 17 % 2**24
    pixels = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1).astype(np.uint8)
    image = Image.fromarray(pixels.reshape(side, side, 3))
    assert np.array_equal(augment.shift_hue(image, hue), np.asarray(F.adjust_hue(image, hue)).transpose(2, 0, 1))


def test_draws_come_from_the_generator_alone():
    image, transform = lesion(300, 256), augment.train_transform()
    state = torch.get_rng_state()
    first = transform(image, torch.Generator().manual_seed(3)), augment.tta_views(image, 5, 0, 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(transform(image, torch.Generator().manual_seed(3)), first[0])
    assert torch.equal(augment.tta_views(image, 5, 0, 0), first[1])


def write_files(folder, count=6):
    paths = [folder / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        lesion(330 + i, 270, seed=i).save(path)
    return paths


def items(dataset, order, workers=0):
    loader = DataLoader(dataset, batch_size=2, sampler=order, num_workers=workers)
    numbers, tensors, labels = zip(*loader, strict=True)
    return torch.cat(numbers), torch.cat(tensors), torch.cat(labels)


@pytest.fixture
def copied(monkeypatch):
    """Files written just now are not copied, since their times prove nothing yet; here they are."""
    monkeypatch.setattr(image_copies, "TICK", 0)


def test_turns_are_the_evaluations_pixels_flipped_and_turned(tmp_path):
    image, transform = lesion(300, 256), augment.train_transform("turns")
    plain = evaluation_transform()(image)
    turned = [torch.rot90(side, k, (1, 2)) for side in (plain, plain.flip(2)) for k in range(4)]
    seen = set()
    for seed in range(40):
        drawn = [transform(pixels, torch.Generator().manual_seed(seed)) for pixels in (image, np.asarray(image))]
        assert torch.equal(*drawn)
        seen |= {k for k, expected in enumerate(turned) if torch.equal(drawn[0], expected)}
    assert len(seen) == 8


@pytest.mark.parametrize("cached", [False, True])
def test_items_are_decided_by_seed_epoch_image_and_repeat(tmp_path, copied, cached):
    paths, labels = write_files(tmp_path), [3, 1, 4, 1, 5, 2]
    cache = tmp_path / "copies" if cached else None
    dataset = pickle.loads(pickle.dumps(augment.TrainingImages(paths, labels, seed=7, cache=cache)))
    seen = {}
    for epoch in (0, 1, 0):  # with a cache the files are decoded in the first and copies are read in the others
        dataset.set_epoch(epoch)
        for workers in (0, 2):
            numbers, tensors, y = items(dataset, [4, 0, 5, 3, 1, 2], workers)
            assert numbers.tolist() == [4, 0, 5, 3, 1, 2]
            assert y.tolist() == [5, 3, 2, 1, 1, 4]
            for i, tensor in zip(numbers.tolist(), tensors, strict=True):
                assert torch.equal(seen.setdefault((epoch, i), tensor), tensor), (epoch, i, workers)
    other_seed = augment.TrainingImages(paths, labels, seed=8)
    fresh = augment.TrainingImages(paths, labels, seed=7)
    fresh.set_epoch(1)
    for i in range(6):
        generator = generator_for(IMAGE, 7, 1, i, 0)
        torch.set_rng_state(generator.get_state())
        image = transforms.Resize(256)(Image.open(paths[i]).convert("RGB"))
        assert torch.equal(seen[1, i], published_training_transform()(image))
        assert not torch.equal(seen[1, i], seen[0, i])
        assert not torch.equal(seen[0, i], other_seed[i][1])
        assert torch.equal(fresh[(i, 0)][1], seen[1, i])
        assert not torch.equal(fresh[(i, 1)][1], seen[1, i])
        assert torch.equal(fresh[(i, 1)][1], fresh[(i, 1)][1])


def test_workers_that_live_on_hear_of_the_epoch(tmp_path):
    dataset = augment.TrainingImages(write_files(tmp_path, 4), [0, 1, 0, 1], seed=0)
    loader = DataLoader(dataset, batch_size=4, num_workers=1, persistent_workers=True)
    batches = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        batches.append(next(iter(loader))[1])
        assert torch.equal(batches[-1], torch.stack([dataset[i][1] for i in range(4)]))
    assert not torch.equal(batches[0], batches[1])
    loader._iterator._shutdown_workers()


def test_copies_spare_the_decoding_until_a_file_changes(tmp_path, copied, monkeypatch):
    paths = write_files(tmp_path, 3)
    dataset = augment.TrainingImages(paths, [0, 1, 2], seed=0, cache=tmp_path / "copies")
    plain = augment.TrainingImages(paths, [0, 1, 2], seed=0)
    decoded, open_image = [], augment.open_image
    monkeypatch.setattr(augment, "open_image", lambda path: decoded.append(path) or open_image(path))
    for epoch in range(3):
        dataset.set_epoch(epoch)
        for i in range(3):
            dataset[i]
    assert decoded == [str(path) for path in paths]
    lesion(400, 270, seed=77).save(paths[1])
    dataset.set_epoch(2)
    plain.set_epoch(2)
    assert torch.equal(dataset[1][1], plain[1][1])
    assert decoded[3:] == [str(paths[1])] * 2
    again = augment.TrainingImages(paths, [0, 1, 2], seed=0, cache=image_copies.ImageCopies(tmp_path / "copies"))
    again.set_epoch(2)
    assert torch.equal(again[1][1], plain[1][1])
    assert decoded[5:] == [str(paths[1])]  # by `plain`


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("cached", [False, True])
def test_a_damaged_image_names_row_file_and_reason(tmp_path, workers, cached):
    paths = write_files(tmp_path, 3)
    paths[1].write_bytes(paths[1].read_bytes()[:400])
    cache = tmp_path / "copies" if cached else None
    dataset = augment.TrainingImages(
        [*paths, tmp_path / "none.png"], [0] * 4, seed=0, rows=[2, 17, 18, 30], cache=cache
    )
    for i, reason in ((1, r"(?s)CSV row 17: .*1\.png: .*truncated"), (3, r"(?s)CSV row 30: .*none\.png: .*not exist")):
        batches = iter(DataLoader(dataset, sampler=[i], num_workers=workers))
        with pytest.raises(ImageError, match=reason):
            next(batches)
        if workers:
            batches._shutdown_workers()


@pytest.mark.parametrize("labels", [[0], [0.0, 1.0], [[0], [1]], ["nv", "mel"]], ids=str)
def test_labels_must_be_integers_one_a_path(labels):
    with pytest.raises(ValueError, match="labels must be 2 integers"):
        augment.TrainingImages(["a", "b"], labels, seed=0)


def test_sampler_weights_are_the_published_ones():
    y = [0] * 6 + [1] * 3 + [3]
    np.testing.assert_allclose(augment.sampler_weights(y, 4), [10 / 24] * 6 + [10 / 12] * 3 + [10 / 4], rtol=1e-15)
    for wrong in ([0, 4], [-1, 0], [], [0.0, 1.0], [[0, 1]]):
        with pytest.raises(ValueError, match=r"integers in 0\.\.3"):
            augment.sampler_weights(wrong, 4)


PINNED = {  # (weighted, seed, epoch)
    (True, 0, 0): [8, 9, 3, 9, 6, 7, 9, 7, 8, 0],
    (True, 0, 1): [9, 4, 9, 3, 6, 8, 9, 5, 9, 5],
    (True, 1, 0): [6, 8, 8, 3, 9, 0, 1, 7, 9, 9],
    (False, 0, 0): [8, 4, 7, 0, 1, 2, 5, 9, 6, 3],
    (False, 0, 1): [5, 2, 6, 8, 1, 3, 4, 7, 0, 9],
}


def test_the_order_of_an_epoch_is_pinned():
    y = [0, 0, 0, 0, 0, 0, 0, 1, 1, 2]
    for (weighted, seed, epoch), order in PINNED.items():
        assert augment.epoch_order(y, 3, weighted, seed, epoch).tolist() == order


def test_unweighted_epochs_hold_every_image_once():
    for epoch in range(3):
        assert sorted(augment.epoch_order([0, 1, 1] * 50, 2, False, 0, epoch)) == list(range(150))


def test_weighted_epochs_draw_the_classes_alike_from_the_rows_given():
    y = np.array([0] * 700 + [1] * 250 + [3] * 50)  # of a fraction that lost class 2
    drawn = np.concatenate([augment.epoch_order(y, 4, True, 5, epoch) for epoch in range(60)])
    assert len(drawn) == 60 * len(y)
    assert (drawn.min(), drawn.max()) == (0, 999)
    shares = np.bincount(y[drawn], minlength=4) / len(drawn)
    np.testing.assert_allclose(shares, [1 / 3, 1 / 3, 0, 1 / 3], atol=0.01)  # five standard errors
    in_class = np.bincount(drawn, minlength=1000)[y == 0]
    expected = len(drawn) / 3 / 700
    assert abs(((in_class - expected) ** 2 / expected).sum() - 699) < 5 * np.sqrt(2 * 699)  # chi-squared


def test_draws_number_the_repeats_of_an_image():
    assert augment.draws([3, 1, 3, 3, 0, 1]) == [(3, 0), (1, 0), (3, 1), (3, 2), (0, 0), (1, 1)]
    assert augment.draws([]) == []
    order = augment.epoch_order([0] * 90 + [1] * 10, 2, True, 0, 0)
    counts = Counter()
    for i, repeat in augment.draws(order):
        assert repeat == counts[i]
        counts[i] += 1


@pytest.mark.parametrize(
    ("size", "images"),
    [((600, 450), 12), *((size, 3) for size in [(450, 600), (246, 246), (300, 246), (40, 31), (1, 1), (900, 100)])],
    ids=str,
)
def test_views_are_bit_equal_to_resizing_each_with_torchvision(size, images):
    image, published = lesion(*size), published_view()
    for index in range(images):
        torch.set_rng_state(generator_for(VIEWS, 4, index).get_state())
        expected = torch.stack([published(image) for _ in range(5)])
        result = augment.tta_views(image, 5, 4, index)
        assert torch.equal(result, expected), index
    assert result.shape == (5, 3, 224, 224)
    assert result.dtype == torch.float32
    assert torch.equal(augment.tta_views(image, 2, 4, index), result[:2])
    assert not torch.equal(augment.tta_views(image, 5, 5, index), result)


def test_views_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="views must be at least 1, got 0"):
        augment.tta_views(lesion(30, 30), 0, 0, 0)
