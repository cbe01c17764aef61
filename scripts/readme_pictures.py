"""Makes the README's pictures in docs/.

    make demo
    .venv/bin/python run_all.py --datasets demo --encoders panderm_tiny --seeds 0 1 2
    .venv/bin/python scripts/readme_pictures.py

The pictures of a notebook and of the report need Chromium (Debian: apt-get install chromium); without it, they are
not updated.
"""

import io
import shutil
import subprocess
import tempfile
from pathlib import Path

import nbformat
import numpy as np
from matplotlib.figure import Figure
from nbconvert import HTMLExporter
from PIL import Image, ImageDraw, ImageFont

from panderm_utils import demo, figures, manifests, results
from panderm_utils.protocols import fine_tune, linear_probe
from panderm_utils.workspace import REPOSITORY, open_workspace

DOCS = REPOSITORY / "docs"
WIDTH = 1200  # pixels


def contact_sheet(columns: int = 8, size: tuple[int, int] = (225, 300)) -> Image.Image:
    """Returns a contact sheet: a row of lesions per class of the demo dataset, labelled in a corner."""
    rng, rows, card = np.random.default_rng(7), [], manifests.load_dataset_manifest("demo")
    for name in card.class_names:
        recipe = demo.recipe_of("demo", name)
        drawn = [demo.draw_lesion(demo.draw_signs(recipe, rng), rng, size).image for _ in range(columns)]
        rows.append(np.hstack(drawn))
    sheet = Image.fromarray(np.vstack(rows))
    sheet = sheet.resize((WIDTH, round(WIDTH * sheet.height / sheet.width)), Image.Resampling.LANCZOS)
    pen, height = ImageDraw.Draw(sheet), sheet.height / card.num_classes
    for label in range(card.num_classes):
        at = (8, round((label + 1) * height) - 22)
        pen.text(
            at, card.title_of_label(label), "white", ImageFont.load_default(14), stroke_width=2, stroke_fill="#333333"
        )
    return sheet


def notebook_page(notebook: Path, first: str, last: str) -> Image.Image:
    """Returns a screenshot of an executed notebook, from the cell that starts with `first` to that with `last`."""
    exporter = HTMLExporter()
    page = nbformat.read(notebook, as_version=4)
    starts = [cell.source for cell in page.cells]
    begin, end = (next(i for i, s in enumerate(starts) if s.startswith(text)) for text in (first, last))
    page.cells = page.cells[begin : end + 1]
    html, _ = exporter.from_notebook_node(page)
    with tempfile.TemporaryDirectory() as folder:
        source, picture = Path(folder) / "page.html", Path(folder) / "page.png"
        source.write_text(html, encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,3000"]
        flags += ["--virtual-time-budget=8000", f"--screenshot={picture}"]
        subprocess.run([shutil.which("chromium"), *flags, source.as_uri()], check=True, capture_output=True)
        with Image.open(picture) as image:
            pixels = np.asarray(image.convert("L"))
            written = np.flatnonzero(pixels.min(axis=1) < 250)
            return image.convert("RGB").crop((0, 0, image.width, int(written.max()) + 20))


def report_page(index: Path, height: int = 1160) -> Image.Image:
    """Returns screenshots of the top of the report, side by side: a wide window and a phone's."""
    from playwright.sync_api import sync_playwright

    shots = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width in (1200, 390):
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
            page.goto(index.as_uri())
            shots.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
        browser.close()
    gap, edge = 24, "#c8ced6"
    both = Image.new("RGB", (sum(shot.width for shot in shots) + gap + 4, height + 2), "white")
    pen, left = ImageDraw.Draw(both), 0
    for shot in shots:
        pen.rectangle((left, 0, left + shot.width + 1, height + 1), outline=edge)
        both.paste(shot, (left + 1, 1))
        left += shot.width + 2 + gap
    return both


def fine_tuning(records_folder: Path) -> Figure:
    """Returns the figure of fine-tuning against linear probing on the demo dataset, with all seeds on disk."""
    runs = results.read_records(records_folder).query("dataset == 'demo'")
    sides = linear_probe.PROTOCOL, fine_tune.PROTOCOL
    both = (results.paper_scores(runs, "demo", side, seed=None) for side in sides)
    pairs = results.compare_protocols(*both, sides).query("headline")
    return figures.protocol_differences(pairs, sides, figures.encoder_colors(pairs), synthetic=True)


def save_small(figure: Path, name: str) -> None:
    """Saves a figure at the README's width."""
    with Image.open(figure) as image:
        size = (WIDTH, round(WIDTH * image.height / image.width))
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(DOCS / name, optimize=True)


def main() -> None:
    space = open_workspace("demo")
    contact_sheet().save(DOCS / "contact_sheet.jpg", quality=85)
    for name in ("figure_2a", "figure_2b"):
        save_small(space.figures / f"{name}.png", f"{name}_demo.png")
    with tempfile.TemporaryDirectory() as folder:
        fine_tuning(space.records).savefig(Path(folder) / "figure.png", dpi=200)
        save_small(Path(folder) / "figure.png", "fine_tuning_demo.png")
    notebook = space.root / "executed/linear_probe/demo-linear_probe-panderm_tiny-seed0.ipynb"
    if shutil.which("chromium"):
        page = notebook_page(notebook, "figures.readable(stats.per_class_report", "predictions = ")
        page.quantize(128).save(DOCS / "notebook.png", optimize=True)
        report_page(space.root / "report/index.html").quantize(128).save(DOCS / "report_demo.png", optimize=True)
    for path in sorted(DOCS.iterdir()):
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    DOCS.mkdir(exist_ok=True)
    main()
