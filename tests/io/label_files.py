"""Small folders of labeled images in common layouts."""

from pathlib import Path

from PIL import Image

SIZE = (40, 30)
BOXES = {"a": [("cat", (5, 6, 14, 20))], "b": [("dog", (1, 1, 10, 10)), ("cat", (3, 2, 40, 30))]}
"""By image: class and VOC's corners, in pixels that count from 1."""


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, (90, 120, 60)).save(path)


def voc_xml(name: str, objects, size=SIZE) -> str:
    inner = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for label, (x0, y0, x1, y1) in objects
    )
    width, height = size
    extent = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{extent}{inner}</annotation>"


def write_voc(root: Path, lists: dict[str, list[str]] | None = None) -> Path:
    (root / "Annotations").mkdir(parents=True)
    for stem, objects in BOXES.items():
        image(root / "JPEGImages" / f"{stem}.jpg")
        (root / "Annotations" / f"{stem}.xml").write_text(voc_xml(f"{stem}.jpg", objects))
    for name, stems in (lists or {}).items():
        path = root / "ImageSets" / "Main" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(stems) + "\n")
    return root


def write_yolo(root: Path) -> Path:
    """Write ``BOXES``, one split per image, and a validation image without labels."""
    root.mkdir(parents=True)
    (root / "data.yaml").write_text("names:\n  0: cat\n  1: 'dog: small'\nnc: 2\n")
    for split, stem in (("train", "a"), ("val", "b")):
        image(root / "images" / split / "deep" / f"{stem}.png")
        lines = []
        for label, (x0, y0, x1, y1) in BOXES[stem]:
            x, y, w, h = x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1
            center = ((x + w / 2) / SIZE[0], (y + h / 2) / SIZE[1], w / SIZE[0], h / SIZE[1])
            lines.append(" ".join([str(int(label == "dog")), *map(repr, center)]))
        labels = root / "labels" / split / "deep" / f"{stem}.txt"
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text("\n".join(lines) + "\n")
    image(root / "images" / "val" / "empty.png")
    return root
