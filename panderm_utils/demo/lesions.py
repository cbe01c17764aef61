"""Draws synthetic skin lesions from their signs: learnable, not realistic. H, W: pixels."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from scipy.special import expit

from panderm_utils.demo.signs import draw_tone

TONES = np.array(
    [[241, 214, 200], [232, 196, 176], [214, 172, 146], [184, 138, 108], [141, 96, 70], [92, 62, 48]], float
)
BROWN, BLACK, BLUE, RED, WHITE, TAN = (
    np.array(c, float)
    for c in ([118, 72, 44], [44, 30, 30], [96, 108, 138], [176, 48, 52], [236, 224, 216], [172, 118, 78])
)


@dataclass(frozen=True)
class Lesion:
    """An image uint8 [H, W, 3], the lesion's mask bool [H, W], and its attributes: signs in 0..1, tone 1..6."""

    image: np.ndarray
    mask: np.ndarray
    attributes: dict[str, float]


def draw_lesion(
    signs: dict[str, float],
    rng: np.random.Generator,
    size: tuple[int, int] = (450, 600),
    modality: str = "dermoscopic",
    tone: int | None = None,
    outline: np.random.Generator | None = None,
) -> Lesion:
    """Returns one drawn lesion.

    Args:
        signs: The strength of each sign, 0..1, as from `draw_signs`.
        rng: The same state gives the same pixels.
        size: Height and width in pixels.
        modality: "dermoscopic", "clinical" (from farther away, in uneven light) or "pathology" (a stained tile).
        tone: Skin tone, 1 (light) to 6 (dark); random by default.
        outline: Random generator of the shape; by default `rng`. Views of one lesion share it and differ in light.
    """
    if modality == "pathology":
        return _draw_tile(signs, rng, size)
    tone = draw_tone(rng) - 1 if tone is None else tone - 1
    image = _skin(TONES[tone], rng, size)
    zoom = 0.55 if modality == "clinical" else 1.0
    depth, angle, radius = _outline(signs, rng if outline is None else outline, size, zoom)
    mask = depth > 0
    _pigment(image, signs, tone, depth, rng, size)
    _signs(image, signs, depth, angle, radius, rng, size)
    if modality == "clinical":
        y, x = _grid(size)
        slope = rng.normal(0, 0.18, 2).tolist()
        image *= (1 + slope[0] * (y / size[0] - 0.5) + slope[1] * (x / size[1] - 0.5))[..., None]
        gaussian_filter(image, (0.8, 0.8, 0), output=image)
    hair = float(np.clip(rng.gamma(1.0, 0.25), 0, 1))
    _hairs(image, hair, tone, rng)
    if modality == "dermoscopic":
        _lens(image, rng)
    image += 2 * rng.standard_normal(image.shape, np.float32)
    np.clip(image, 0, 255, out=image)
    attributes = {**signs, "hair": hair, "tone": tone + 1, "area": float(mask.mean())}
    return Lesion(image.astype(np.uint8, "C"), mask, attributes)


def _grid(size) -> np.ndarray:
    """Returns the row and column of each pixel, float32 [2, H, W]."""
    return np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)


def _noise(rng, size, scale: float) -> np.ndarray:
    """Returns smooth noise [H, W] with mean 0 and variance about 1, in blobs about `scale` pixels wide."""
    height, width = (max(2, int(side / scale) + 2) for side in size)
    grid = Image.fromarray(rng.standard_normal((height, width)).astype(np.float32), mode="F")
    return 1.25 * np.asarray(grid.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _skin(tone: np.ndarray, rng, size) -> np.ndarray:
    unit = size[0] / 225
    furrows = np.abs(_noise(rng, size, 7 * unit)) + 0.5 * np.abs(_noise(rng, size, 4 * unit))
    light = 5 * _noise(rng, size, 90 * unit) + 3 * _noise(rng, size, 25 * unit) - 3.5 * (1 - furrows)
    blush = 4 * _noise(rng, size, 45 * unit)
    image = tone[:, None, None] + light
    image += blush * np.array([0.6, -0.6, -0.4])[:, None, None]
    image += rng.normal(0, 3, 3)[:, None, None]
    return np.moveaxis(image.astype(np.float32), 0, 2)  # a plane for each channel: NumPy is slow along an axis of three


def _outline(signs, rng, size, zoom):
    """Returns the signed depth inside the lesion (in units of its radius), the angle and the radius in pixels."""
    y, x = _grid(size)
    top, left = (np.array(size) / 2 + rng.normal(0, 0.06, 2) * size[0]).tolist()
    radius = zoom * size[0] * (0.16 + 0.3 * signs["size"])
    turn = rng.uniform(0, np.pi)
    u = (x - left) * math.cos(turn) + (y - top) * math.sin(turn)
    v = -(x - left) * math.sin(turn) + (y - top) * math.cos(turn)
    squeeze = 1 + 0.7 * signs["elongation"]
    rho, angle = np.hypot(u / squeeze**0.5, v * squeeze**0.5) / radius, np.arctan2(v, u)
    edge = np.ones_like(rho)
    for k in range(2, 9):
        edge += signs["irregularity"] * rng.normal(0, 0.55 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    edge += 0.05 * (0.3 + signs["irregularity"]) * _noise(rng, size, radius / 5)
    return np.clip(edge, 0.35, 1.8) - rho, angle, radius


def _blend(image, colour, weight) -> None:
    weight = weight.astype(np.float32, copy=False)
    for channel in range(3):
        image[..., channel] += weight * (colour[..., channel].astype(np.float32) - image[..., channel])


def _pigment(image, signs, tone, depth, rng, size) -> None:
    """Draws the lesion's body: a base colour between tan, brown and red, with patches of other colours."""
    soft = expit(depth / (0.02 + 0.1 * signs["softness"]))
    red, dark = signs["redness"], signs["darkness"]
    base = (1 - red) * ((1 - dark) * TAN + dark * BROWN) + red * ((1 - dark) * (RED + 60) + dark * RED)
    base *= 1 - 0.09 * tone
    texture = 0.10 * _noise(rng, size, size[0] / 12) + 0.05 * _noise(rng, size, size[0] / 40)
    textured = np.moveaxis(base[:, None, None] * (1 + texture), 0, 2)
    _blend(image, textured, soft * (0.55 + 0.4 * dark))
    for colour, share in ((BLACK, 0.9), (BROWN, 0.8), (RED, 0.5), (TAN, 0.6)):
        patch = _noise(rng, size, size[0] / rng.uniform(5, 9)) - 1.4 + 1.3 * signs["colours"]
        weight = soft * expit(6 * patch)
        _blend(image, colour * (1 - 0.05 * tone), share * signs["colours"] * weight)


def _signs(image, signs, depth, angle, radius, rng, size) -> None:
    inside = expit(depth / 0.04)
    unit = size[0] / 225
    if signs["network"] > 0.12:  # a warped honeycomb of dark lines
        y, x = _grid(size)
        warp, pitch = 2.5 * unit, rng.uniform(7, 10) * unit
        x, y = x + warp * _noise(rng, size, 14 * unit), y + warp * _noise(rng, size, 14 * unit)
        waves = [np.cos(2 * np.pi / pitch * (x * math.cos(a) + y * math.sin(a))) for a in (0, 2.094, 4.189)]
        lines = expit(-5 * (sum(waves) + 0.55))
        patchy = np.clip(0.8 + 0.5 * _noise(rng, size, 40 * unit), 0, 1)
        _blend(image, BROWN * 0.55, 0.75 * signs["network"] * lines * inside * patchy)
    if signs["globules"] > 0.12:
        spots = _spots(rng, size, inside > 0.6, int(10 + 70 * signs["globules"]), 1.6 * unit)
        _blend(image, BROWN * 0.6, 0.8 * np.clip(0.35 + signs["globules"], 0, 1) * spots)
    if signs["streaks"] > 0.12:  # radial lines at the border
        teeth = np.clip(np.cos(angle * rng.integers(14, 26) + 2 * _noise(rng, size, radius / 2)), 0, 1) ** 3
        rim = np.exp(-(((depth + 0.02) / 0.13) ** 2))
        _blend(image, BLACK, signs["streaks"] * teeth * rim)
    if signs["veil"] > 0.12:
        cloud = expit(4 * (_noise(rng, size, radius / 1.6) - 0.2))
        _blend(image, BLUE, 0.85 * np.clip(signs["veil"] + 0.15, 0, 1) * cloud * (depth > 0) * np.clip(depth * 3, 0, 1))
    if signs["scar"] > 0.12:
        centre = expit((depth - 0.62) / 0.07)
        _blend(image, WHITE, 0.75 * np.clip(signs["scar"] + 0.2, 0, 1) * centre)
    if signs["lacunae"] > 0.12:
        blobs = _spots(rng, size, depth > 0.1, int(5 + 16 * signs["lacunae"]), 5.5 * unit)
        _blend(image, np.array([128, 18, 52.0]), 0.9 * np.clip(signs["lacunae"] + 0.2, 0, 1) * blobs)
    if signs["scale"] > 0.12:  # white flakes on a strawberry ground
        flakes = expit(7 * (_noise(rng, size, 9 * unit) - 1.5 + 0.8 * signs["scale"]))
        _blend(image, np.array([240, 226, 196.0]), 0.8 * flakes * inside)
        dots = _spots(rng, size, inside > 0.5, int(15 + 40 * signs["scale"]), 1.3 * unit)
        _blend(image, RED, 0.6 * signs["scale"] * dots)
    if signs["cysts"] > 0.12:
        cysts = _spots(rng, size, depth > 0.08, int(4 + 16 * signs["cysts"]), 1.9 * unit)
        _blend(image, np.array([250, 240, 216.0]), 0.85 * cysts)
    if signs["vessels"] > 0.12:
        image += inside[..., None] * (_vessels(image, signs["vessels"], depth, radius, rng) - image)


def _spots(rng, size, where, count: int, sigma: float) -> np.ndarray:
    """Returns round spots [H, W] in 0..1 of two sizes, at random places inside the mask `where`."""
    ys, xs = np.nonzero(where)
    spots = np.zeros(size, np.float32)
    if len(ys) == 0:
        return spots
    for scale in (0.8, 1.25):
        at = rng.integers(0, len(ys), max(1, count // 2))
        layer = np.zeros(size, np.float32)
        layer[ys[at], xs[at]] = 1
        blurred = gaussian_filter(layer, scale * sigma, truncate=2.5) * (2 * np.pi * (scale * sigma) ** 2)
        spots = np.maximum(spots, expit(12 * (blurred - 0.5)))
    return np.where(spots > 0.01, spots, 0)


def _vessels(image, strength, depth, radius, rng) -> np.ndarray:
    """Returns the image with arborising vessels: random walks from the lesion's rim that branch and get thinner."""
    canvas = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    ys, xs = np.nonzero((depth > 0) & (depth < 0.5))
    walks = []
    for _ in range(int(1 + 4 * strength)):
        if len(ys) == 0:
            break
        i = rng.integers(len(ys))
        walks.append((float(xs[i]), float(ys[i]), rng.uniform(0, 2 * np.pi), 0.035 * radius, 3))
    while walks:
        x, y, heading, width, generation = walks.pop()
        for _ in range(9):
            heading += rng.normal(0, 0.35)
            to = (x + 0.09 * radius * np.cos(heading), y + 0.09 * radius * np.sin(heading))
            pen.line([(x, y), to], fill=(170, 36, 48), width=max(1, round(width)))
            x, y = to
            if generation and rng.random() < 0.22:
                walks.append((x, y, heading + rng.choice([-0.8, 0.8]), 0.65 * width, generation - 1))
    return gaussian_filter(np.asarray(canvas, np.float32), (0.6, 0.6, 0))


def _hairs(image, amount, tone, rng) -> None:
    """Draws curved hairs of varied width and shade."""
    count = int(rng.poisson(14 * amount))
    if count == 0:
        return
    canvas = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    pen, (height, width) = ImageDraw.Draw(canvas), image.shape[:2]
    main = rng.uniform(0, np.pi)
    t = np.linspace(0, 1, 24)[:, None]
    for _ in range(count):
        start, turn = rng.uniform(0, 1, 2) * (width, height), main + rng.normal(0, 0.5)
        reach = rng.uniform(0.35, 0.9) * height * np.array([np.cos(turn), np.sin(turn)])
        bend = start + reach / 2 + rng.normal(0, 0.09, 2) * height
        points = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * (start + reach)
        shade = np.clip(np.array([70, 50, 38]) * rng.uniform(0.4, 1.5) - 5 * tone, 8, 190).astype(int)
        pen.line(
            [tuple(p) for p in points],
            fill=tuple(shade.tolist()),
            width=max(1, round(rng.uniform(0.4, 1.5) * height / 225)),
        )
    hairs = gaussian_filter(np.asarray(canvas, np.float32), (0.45, 0.45, 0))
    image *= 0.15
    image += 0.85 * hairs


def _lens(image, rng) -> None:
    """Draws the dermatoscope's effects: a darker rim, sometimes a black frame around a round field, or gel bubbles."""
    height, width = image.shape[:2]
    y, x = _grid((height, width))
    top, left = (np.array([height, width]) / 2 + rng.normal(0, 0.02, 2) * height).tolist()
    rho = np.hypot(y - top, x - left) / height
    image *= (1 - rng.uniform(0.1, 0.3) * np.clip(rho - 0.25, 0, None) ** 1.5)[..., None]
    if rng.random() < 0.25:
        frame = expit((rng.uniform(0.56, 0.68) - rho) / 0.006)
        image *= (0.05 + 0.95 * frame)[..., None]
    for _ in range(rng.poisson(0.5)):
        at, r = rng.uniform(0.15, 0.85, 2) * (height, width), rng.uniform(0.008, 0.03) * height
        ring = np.exp(-(((np.hypot(y - at[0], x - at[1]) - r) / (0.25 * r + 0.6)) ** 2))
        image += 55 * ring[..., None]


def _draw_tile(signs, rng, size) -> Lesion:
    """Returns a stained tile: pink fibres and purple nuclei; the signs set their density, size, order and spacing."""
    unit = size[0] / 225
    fibres = _noise(rng, size, (6 + 30 * signs["size"]) * unit) + 0.6 * _noise(rng, size, 5 * unit)
    pink = np.array([226, 156, 190.0]) + np.array([8, -30, -8.0]) * (signs["redness"] - 0.3)
    image = pink + (9 + 14 * signs["network"]) * fibres[..., None] * np.array([0.6, 1.1, 0.6])
    spaces = expit(6 * (_noise(rng, size, (10 + 30 * signs["elongation"]) * unit) - 2 + 2 * signs["scar"]))
    _blend(image, np.array([244, 240, 244.0]), np.clip(spaces, 0, 1))
    glands = _noise(rng, size, (12 + 28 * signs["irregularity"]) * unit) > 1.3 - 1.8 * signs["veil"]
    nests = glands if glands.mean() > 0.03 else np.ones(size, bool)
    _blend(image, np.array([186, 128, 186.0]), 0.5 * signs["veil"] * glands.astype(float))
    count = int((120 + 900 * signs["globules"] + 400 * signs["darkness"]) * 1.3)
    nuclei = _spots(
        rng, size, nests & (spaces < 0.5), count, (1.0 + 1.3 * signs["streaks"] + 0.6 * signs["darkness"]) * unit
    )
    _blend(image, np.array([92, 58, 140.0]) * (1.1 - 0.4 * signs["darkness"]), 0.85 * nuclei)
    if signs["lacunae"] > 0.12:
        blood = _spots(rng, size, spaces < 0.5, int(20 + 60 * signs["lacunae"]), 2.4 * unit)
        _blend(image, np.array([206, 60, 84.0]), 0.7 * blood)
    image += 3 * rng.standard_normal(image.shape, np.float32)
    attributes = {**signs, "hair": 0.0, "tone": 1, "area": float(nuclei.mean())}
    return Lesion(np.clip(image, 0, 255).astype(np.uint8), nuclei > 0.5, attributes)
