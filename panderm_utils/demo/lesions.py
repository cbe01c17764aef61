"""Draws synthetic skin lesions from their signs: learnable, not realistic. H, W: pixels."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.special import expit

from panderm_utils.demo.cameras import MODALITIES, Camera, photograph, vary
from panderm_utils.demo.signs import draw_tone

TONES = np.array(
    [[241, 214, 200], [232, 196, 176], [214, 172, 146], [184, 138, 108], [141, 96, 70], [92, 62, 48]], np.float32
)
BROWN, BLACK, BLUE, RED, WHITE, TAN, BLOOD, VESSEL, FLAKE, CYST = np.array(
    [
        [118, 72, 44],
        [44, 30, 30],
        [96, 108, 138],
        [176, 48, 52],
        [236, 224, 216],
        [172, 118, 78],
        [128, 18, 52],
        [170, 36, 48],
        [240, 226, 196],
        [250, 240, 216],
    ],
    np.float32,
)
FAINT = 0.12  # a weaker sign is not drawn


@dataclass(frozen=True)
class Lesion:
    """A drawn lesion.

    Attributes:
        image: uint8 [H, W, 3].
        mask: Where the lesion is, bool [H, W].
        attributes: Signs in 0..1, tone 1..6, hair and area.
        layers: Where each drawn sign is and how strongly, float32 [H, W] in 0..1; without an entry, nowhere.
    """

    image: np.ndarray
    mask: np.ndarray
    attributes: dict[str, float]
    layers: dict[str, np.ndarray]


def draw_lesion(
    signs: dict[str, float],
    rng: np.random.Generator,
    size: tuple[int, int] = (450, 600),
    modality: str = "dermoscopic",
    tone: int | None = None,
    outline: np.random.Generator | None = None,
    camera: Camera | None = None,
) -> Lesion:
    """Returns one drawn lesion.

    Args:
        signs: The strength of each sign, 0..1, as from `draw_signs`.
        rng: The same state gives the same pixels.
        size: Height and width in pixels.
        modality: "dermoscopic", "clinical" (from farther away, in uneven light) or "pathology" (a stained tile).
        tone: Skin tone, 1 (light) to 6 (dark); random by default.
        outline: Random generator of the shape; by default `rng`. Views of one lesion share it and differ in light.
        camera: The institution's, by default the modality's.
    """
    camera = vary(camera or MODALITIES[modality], rng)
    if modality == "pathology":
        return _draw_tile(signs, rng, size, camera)
    tone = draw_tone(rng) - 1 if tone is None else tone - 1
    image = _skin(TONES[tone], rng, size)
    zoom = 0.6 if modality == "clinical" else 1.0
    depth, angle, radius = _outline(signs, rng if outline is None else outline, size, zoom)
    mask = depth > 0
    # The skin's own melanin hides the lesion's: signs show less on dark skin.
    layers = _lesion(image, signs, 1 - 0.07 * tone, depth, angle, radius, rng)
    if modality == "clinical":
        slope = rng.normal(0, 0.18, 2).astype(np.float32)
        rows, columns = (np.linspace(-0.5, 0.5, side, dtype=np.float32) for side in size)
        image *= 1 + slope[0] * rows[:, None] + slope[1] * columns
    hair = float(np.clip(camera.hair * rng.gamma(1.0, 0.25), 0, 1))
    _hairs(image, hair, tone, rng)
    attributes = {**signs, "hair": hair, "tone": tone + 1, "area": float(mask.mean())}
    return Lesion(photograph(image, camera, rng), mask, attributes, layers)


def _noise(rng, size, scale: float) -> np.ndarray:
    """Returns smooth noise [H, W] with mean 0 and variance about 1, in blobs about `scale` pixels wide."""
    height, width = (max(2, int(side / scale) + 2) for side in size)
    grid = Image.fromarray(1.25 * rng.standard_normal((height, width), np.float32))
    return np.asarray(grid.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _skin(tone: np.ndarray, rng, size) -> np.ndarray:
    """Returns planes float32 [3, H, W] of furrowed, unevenly lit and blushed skin."""
    unit = size[0] / 225
    furrows = np.abs(_noise(rng, size, 7 * unit)) + 0.5 * np.abs(_noise(rng, size, 4 * unit))
    coarse = tuple(side // 5 for side in size)  # smooth fields need no fine grid
    light = 5 * _noise(rng, coarse, 18 * unit) + 3 * _noise(rng, coarse, 5 * unit)
    blush = 4 * _noise(rng, coarse, 9 * unit)
    image = np.empty((3, *size), np.float32)
    for plane, colour, share, shift in zip(image, tone.tolist(), (0.6, -0.6, -0.4), rng.normal(0, 3, 3), strict=True):
        field = Image.fromarray(light + np.float32(share) * blush + np.float32(colour + shift - 3.5))
        plane[...] = np.asarray(field.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    image += 3.5 * furrows
    return image


def _outline(signs, rng, size, zoom):
    """Returns the signed depth inside the lesion (in units of its radius), the angle and the radius in pixels."""
    top, left = (np.array(size) / 2 + rng.normal(0, 0.06, 2) * size[0]).tolist()
    y, x = np.arange(size[0], dtype=np.float32)[:, None] - top, np.arange(size[1], dtype=np.float32) - left
    radius = zoom * size[0] * (0.16 + 0.3 * signs["size"])
    turn = rng.uniform(0, np.pi)
    u, v = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    squeeze = (1 + 0.7 * signs["elongation"]) ** 0.5
    rho, angle = np.hypot(u / (squeeze * radius), v * (squeeze / radius)), np.arctan2(v, u)
    turns = np.linspace(-np.pi, np.pi, 720, dtype=np.float32)
    edge = np.ones_like(turns)
    for k in range(2, 9):
        edge += signs["irregularity"] * rng.normal(0, 0.55 / k) * np.cos(k * turns + rng.uniform(0, 2 * np.pi))
    edge = edge[((angle + np.pi) * (719 / (2 * np.pi))).astype(np.int32)]
    edge += 0.05 * (0.3 + signs["irregularity"]) * _noise(rng, size, radius / 5)
    return np.clip(edge, 0.35, 1.8) - rho, angle, radius


def _blend(image, colour, weight) -> None:
    image += weight * (colour[:, None, None] - image)


def _lesion(image, signs, contrast: float, depth, angle, radius, rng) -> dict[str, np.ndarray]:
    """Draws the lesion's body and signs; returns the signs' layers. Works on the lesion's box only, which is faster."""
    size = depth.shape
    rows, columns = (np.flatnonzero((depth > -0.4).any(axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    part, depth = image[(slice(None), *box)], depth[box]
    _pigment(part, signs, contrast, depth, size[0], rng)
    layers = {}
    for name, (colour, weight) in _signs(signs, depth, angle[box], radius, size[0] / 225, rng).items():
        weight = contrast * weight.astype(np.float32)
        _blend(part, colour, weight)
        layers[name] = np.zeros(size, np.float32)
        layers[name][box] = weight
    return layers


def _pigment(image, signs, contrast, depth, height, rng) -> None:
    """Draws the lesion's body: a base colour between tan, brown and red, with patches of other colours."""
    size, scale = depth.shape, np.float32(contrast)
    soft = expit(depth / np.float32(0.02 + 0.1 * signs["softness"]))
    red, dark = np.float32(signs["redness"]), np.float32(signs["darkness"])
    base = (1 - red) * ((1 - dark) * TAN + dark * BROWN) + red * ((1 - dark) * (RED + 60) + dark * RED)
    texture = 1 + 0.10 * _noise(rng, size, height / 12) + 0.05 * _noise(rng, size, height / 40)
    weight = soft * (scale * (np.float32(0.55) + np.float32(0.4) * dark))
    image += weight * ((base * (0.4 + 0.6 * scale))[:, None, None] * texture - image)
    for colour, share in ((BLACK, 0.9), (BROWN, 0.8), (RED, 0.5), (TAN, 0.6)):
        patch = _noise(rng, size, height / rng.uniform(5, 9)) + np.float32(1.3 * signs["colours"] - 1.4)
        _blend(image, colour, soft * expit(6 * patch) * np.float32(share * signs["colours"] * contrast))


def _signs(signs, depth, angle, radius, unit, rng) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the colour [3] and the weight [H, W] of every sign that is strong enough to be seen, in drawing order."""
    size, drawn = depth.shape, {}
    inside = expit(depth / np.float32(0.04))
    strength = {name: np.float32(value if value > FAINT else 0) for name, value in signs.items()}
    if s := strength["network"]:  # a warped honeycomb of dark lines
        warp, pitch = 2.5 * unit, rng.uniform(7, 10) * unit
        y, x = (np.arange(side, dtype=np.float32) for side in size)
        x, y = x + warp * _noise(rng, size, 14 * unit), y[:, None] + warp * _noise(rng, size, 14 * unit)
        turns = [(math.cos(a) * 2 * np.pi / pitch, math.sin(a) * 2 * np.pi / pitch) for a in (0, 2.094, 4.189)]
        lines = expit(-5 * (sum(np.cos(x * c + y * d) for c, d in turns) + 0.55))
        patchy = np.clip(0.8 + 0.5 * _noise(rng, size, 40 * unit), 0, 1)
        drawn["network"] = 0.55 * BROWN, 0.75 * s * lines * inside * patchy
    if s := strength["globules"]:
        spots = _spots(rng, inside > 0.6, int(10 + 70 * s), 1.6 * unit)
        drawn["globules"] = 0.6 * BROWN, 0.8 * min(1, 0.35 + s) * spots
    if s := strength["streaks"]:  # radial lines at the border
        teeth = np.clip(np.cos(angle * rng.integers(14, 26) + 2 * _noise(rng, size, radius / 2)), 0, 1) ** 3
        drawn["streaks"] = BLACK, s * teeth * np.exp(-(((depth + 0.02) / 0.13) ** 2))
    if s := strength["veil"]:
        cloud = expit(4 * (_noise(rng, size, radius / 1.6) - 0.2))
        drawn["veil"] = BLUE, 0.85 * min(1, s + 0.15) * cloud * np.clip(depth * 3, 0, 1)
    if s := strength["scar"]:
        drawn["scar"] = WHITE, 0.75 * min(1, s + 0.2) * expit((depth - 0.62) / 0.07)
    if s := strength["lacunae"]:
        blobs = _spots(rng, depth > 0.1, int(5 + 16 * s), 5.5 * unit)
        drawn["lacunae"] = BLOOD, 0.9 * min(1, s + 0.2) * blobs
    if s := strength["scale"]:  # white flakes
        flakes = expit(7 * (_noise(rng, size, 9 * unit) - 1.5 + 0.8 * s))
        drawn["scale"] = FLAKE, 0.8 * flakes * inside
    if s := strength["cysts"]:
        drawn["cysts"] = CYST, 0.85 * _spots(rng, depth > 0.08, int(4 + 16 * s), 1.9 * unit)
    if s := strength["vessels"]:
        drawn["vessels"] = VESSEL, 0.9 * inside * _vessels(s, depth, radius, rng)
    return drawn


def _spots(rng, where, count: int, sigma: float) -> np.ndarray:
    """Returns round spots [H, W] in 0..1 of two sizes, at random places inside the mask `where`."""
    height, width = where.shape
    places = np.flatnonzero(where)
    spots = np.zeros(height * width, np.float32)
    for scale in (0.8, 1.25) if len(places) else ():
        reach = math.ceil(1.6 * scale * sigma)
        steps = np.arange(-reach, reach + 1, dtype=np.int32)
        squared = (steps[:, None] ** 2 + steps**2) / np.float32(2 * (scale * sigma) ** 2)
        disc = expit(12 * (np.exp(-squared) - 0.5))
        at = places[rng.integers(0, len(places), max(1, count // 2))].astype(np.int32)
        rows = np.clip((at // width)[:, None, None] + steps[:, None], 0, height - 1)
        columns = np.clip((at % width)[:, None, None] + steps, 0, width - 1)
        np.maximum.at(spots, (rows * width + columns).ravel(), np.tile(disc.ravel(), len(at)))
    return np.where(spots > 0.01, spots, 0).reshape(where.shape)


def _vessels(strength, depth, radius, rng) -> np.ndarray:
    """Returns arborising vessels [H, W] in 0..1: random walks from the lesion's rim that branch and get thinner."""
    canvas = Image.new("L", depth.shape[::-1])
    pen = ImageDraw.Draw(canvas)
    rim = np.flatnonzero((depth > 0) & (depth < 0.5))
    walks = []
    for at in rim[rng.integers(0, len(rim), int(1 + 4 * strength))] if len(rim) else ():
        y, x = divmod(int(at), depth.shape[1])
        walks.append((x, y, rng.uniform(0, 2 * np.pi), 0.035 * radius, 3))
    while walks:
        x, y, heading, width, generation = walks.pop()
        points = [(x, y)]
        for turn, chance in zip(rng.normal(0, 0.35, 9).tolist(), rng.random(9).tolist(), strict=True):
            heading += turn
            x, y = x + 0.09 * radius * math.cos(heading), y + 0.09 * radius * math.sin(heading)
            points.append((x, y))
            if generation and chance < 0.22:
                side = 0.8 if chance < 0.11 else -0.8
                walks.append((x, y, heading + side, 0.65 * width, generation - 1))
        pen.line(points, fill=255, width=max(1, round(width)))
    return _ink(canvas, 0.6)


def _hairs(image, amount, tone, rng) -> None:
    """Draws curved hairs of varied width and opacity."""
    count = int(rng.poisson(14 * amount))
    if count == 0:
        return
    height, width = image.shape[1:]
    canvas = Image.new("L", (width, height))
    pen, main, t = ImageDraw.Draw(canvas), rng.uniform(0, np.pi), np.linspace(0, 1, 24)[:, None]
    for _ in range(count):
        start, turn = rng.uniform(0, 1, 2) * (width, height), main + rng.normal(0, 0.5)
        reach = rng.uniform(0.35, 0.9) * height * np.array([np.cos(turn), np.sin(turn)])
        bend = start + reach / 2 + rng.normal(0, 0.09, 2) * height
        points = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * (start + reach)
        thickness = max(1, round(rng.uniform(0.4, 1.5) * height / 225))
        pen.line(points.ravel().tolist(), fill=int(rng.integers(130, 235)), width=thickness)
    shade = np.clip(np.array([70, 50, 38], np.float32) * rng.uniform(0.4, 1.3) - 5 * tone, 8, 190)
    _blend(image, shade.astype(np.float32), _ink(canvas, 0.45))


def _ink(canvas: Image.Image, blur: float) -> np.ndarray:
    """Returns lines drawn on a canvas as weights float32 [H, W] in 0..1, slightly blurred."""
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(blur)), np.float32) / 255


def _draw_tile(signs, rng, size, camera) -> Lesion:
    """Returns a stained tile: pink fibres and purple nuclei; the signs set their density, size, order and spacing."""
    unit = size[0] / 225
    fibres = _noise(rng, size, (6 + 30 * signs["size"]) * unit) + 0.6 * _noise(rng, size, 5 * unit)
    pink = np.array([226, 156, 190]) + np.array([8, -30, -8]) * (signs["redness"] - 0.3)
    weave = (9 + 14 * signs["network"]) * np.array([0.6, 1.1, 0.6])
    image = pink.astype(np.float32)[:, None, None] + weave.astype(np.float32)[:, None, None] * fibres
    spaces = expit(6 * (_noise(rng, size, (10 + 30 * signs["elongation"]) * unit) - 2 + 2 * signs["scar"]))
    _blend(image, np.array([244, 240, 244], np.float32), spaces)
    glands = _noise(rng, size, (12 + 28 * signs["irregularity"]) * unit) > 1.3 - 1.8 * signs["veil"]
    nests = glands if glands.mean() > 0.03 else np.ones(size, bool)
    _blend(image, np.array([186, 128, 186], np.float32), np.float32(0.5 * signs["veil"]) * glands)
    count = int((120 + 900 * signs["globules"] + 400 * signs["darkness"]) * 1.3)
    width = (1.0 + 1.3 * signs["streaks"] + 0.6 * signs["darkness"]) * unit
    nuclei = _spots(rng, nests & (spaces < 0.5), count, width)
    stain = np.array([92, 58, 140]) * (1.1 - 0.4 * signs["darkness"])
    _blend(image, stain.astype(np.float32), np.float32(0.85) * nuclei)
    if signs["lacunae"] > FAINT:
        blood = _spots(rng, spaces < 0.5, int(20 + 60 * signs["lacunae"]), 2.4 * unit)
        _blend(image, np.array([206, 60, 84], np.float32), np.float32(0.7) * blood)
    attributes = {**signs, "hair": 0.0, "tone": 1, "area": float(nuclei.mean())}
    return Lesion(photograph(image, camera, rng), nuclei > 0.5, attributes, {})
