"""How institutions take their images: colour, light, hair and what lies in the field of view.

These differences are why a probe that is trained in one place scores lower in another, as published networks do: AUROC
0.76 to 0.86 on 569 images of a hospital that they had not seen (Oloruntoba et al., JMIR Dermatol 2022;5:e35150).

H, W: pixels.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw


@dataclass(frozen=True)
class Camera:
    """An institution's way of taking images; each image varies a little around it.

    Attributes:
        colour: Gains of red, green and blue.
        gamma: Exponent of the tone curve; above 1 is darker.
        contrast: Factor of the distance from middle grey.
        vignette: Loss of light towards the corners.
        frame: Probability of a black frame around a round field.
        ruler: Probability of a ruler at an edge.
        hair: Factor of the amount of hair: below 1 where it is shaved.
        noise: Standard deviation in grey levels of 255.
    """

    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gamma: float = 1.0
    contrast: float = 1.0
    vignette: float = 0.2
    frame: float = 0.2
    ruler: float = 0.0
    hair: float = 1.0
    noise: float = 2.0


# By dataset; any other has the default of its modality. Distances from ham10000's are what external validation shows.
DERMATOSCOPE = Camera()
CAMERAS = {
    "ham10000": Camera((1.02, 0.98, 1.0), vignette=0.15, frame=0.1),
    "demo": Camera((0.9, 0.97, 1.08), gamma=1.25, contrast=0.85, vignette=0.5, ruler=0.4, hair=1.6),
    "bcn20000": Camera((1.05, 0.95, 0.95), gamma=1.1, vignette=0.4, frame=0.7, noise=3.0),
    "mskcc": Camera((0.97, 1.0, 1.03), ruler=0.5, hair=1.5),
    "hiba": Camera((1.0, 0.96, 0.92), gamma=0.9, frame=0.3),
    "ph2": Camera((1.12, 0.92, 0.82), gamma=1.3, contrast=0.8, vignette=0.6, frame=0.6, hair=1.4),
    "derm7pt_dermoscopic": Camera((1.06, 0.97, 0.9), gamma=1.15, vignette=0.3, frame=0.15, noise=4.0),
    "isic2018_task1": Camera(ruler=0.2, frame=0.3),
}
MODALITIES = {
    "dermoscopic": DERMATOSCOPE,
    "clinical": Camera(vignette=0.05, frame=0.0, ruler=0.1, noise=3.0),
    "pathology": Camera(vignette=0.0, frame=0.0, hair=0.0, noise=3.0),
}


def camera_of(dataset: str, modality: str) -> Camera:
    """Returns the camera of a dataset's institution; by default its modality's, in colours of its own."""
    if dataset in CAMERAS:
        return CAMERAS[dataset]
    seed = int.from_bytes(hashlib.sha256(dataset.encode()).digest()[:8], "big")
    return vary(MODALITIES[modality], np.random.default_rng(seed))


def draw_camera(modality: str, rng: np.random.Generator) -> Camera:
    """Returns a random camera, of no institution."""
    camera = MODALITIES[modality]
    if modality == "dermoscopic":
        camera = replace(camera, vignette=rng.uniform(0, 0.4), ruler=0.1, hair=rng.uniform(0.5, 1.5))
    return vary(camera, rng)


def vary(camera: Camera, rng: np.random.Generator, spread: float = 1.0) -> Camera:
    """Returns a camera near this one: other light, another lens, another hand. `spread`: how near."""
    factor = np.exp(spread * rng.normal(0, (0.05, 0.03, 0.05, 0.08, 0.06, 0.2)))
    colour = tuple((factor[:3] * camera.colour).tolist())
    gamma, contrast, noise = (factor[3:] * (camera.gamma, camera.contrast, camera.noise)).tolist()
    return replace(camera, colour=colour, gamma=gamma, contrast=contrast, noise=noise)


def photograph(image: np.ndarray, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Returns the planes float32 [3, H, W], which change, as an image uint8 [H, W, 3] taken by a camera."""
    height, width = image.shape[1:]
    rows, columns = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    top, left = (np.array([height, width]) / 2 + rng.normal(0, 0.02, 2) * height).tolist()
    if camera.vignette or camera.frame:
        rho = ((rows - top) ** 2 + (columns - left) ** 2) / np.float32(height**2)
        image *= 1 - min(0.9, camera.vignette * rng.uniform(0.5, 1.5)) * np.minimum(1.6 * rho, 1)
        if rng.random() < camera.frame:
            image *= 0.04 + 0.96 * np.clip((rng.uniform(0.54, 0.66) ** 2 - rho) * 60, 0, 1)
    if rng.random() < camera.ruler:
        _draw_ruler(image, rng)
    image += np.float32(camera.noise) * rng.standard_normal((height, width), np.float32)
    np.clip(image, 0, 255, out=image)
    picture = Image.fromarray(np.ascontiguousarray(np.moveaxis(image.astype(np.uint8), 0, 2)))
    return np.asarray(picture.point(tone_curve(camera)))


def tone_curve(camera: Camera) -> list[int]:
    """Returns the brightness 0..255 that each of 256 brightnesses becomes, for red, green and blue in turn."""
    light = np.linspace(0, 1, 256) * np.array(camera.colour)[:, None]
    curve = (light**camera.gamma - 0.5) * camera.contrast + 0.5
    return np.clip(255 * curve, 0, 255).round().astype(int).ravel().tolist()


def _draw_ruler(image: np.ndarray, rng: np.random.Generator) -> None:
    height, width = image.shape[1:]
    canvas = Image.new("L", (width, height))
    pen, pitch = ImageDraw.Draw(canvas), rng.uniform(0.03, 0.05) * height
    flip = rng.random() < 0.5
    for i in range(int(width / pitch)):
        x, tick = i * pitch, (0.075 if i % 10 == 0 else 0.055 if i % 5 == 0 else 0.035) * height
        pen.line([(x, 0 if flip else height), (x, tick if flip else height - tick)], fill=200)
    image *= 1 - np.asarray(canvas, np.float32) / 255
