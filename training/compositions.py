"""Captioned 64×64 compositions of real photographs: the world that the bundled model lives in.

Every picture is made of Fashion-MNIST photographs, tinted and placed on a coloured ground. A
picture is a pure function of (photographs, seed, index), so any sample of any split can be made
again, alone, on any machine.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
from PIL import Image

SIZE = 64
# Class 4 (coat) and class 6 (shirt) are left out: at 28×28 neither people nor classifiers tell them
# from pullovers and T-shirts.
GARMENTS = {
    "shirt": 0,
    "trousers": 1,
    "pullover": 2,
    "dress": 3,
    "sandal": 5,
    "sneaker": 7,
    "bag": 8,
    "boot": 9,
}
COLOURS = {
    "red": (214, 39, 40),
    "orange": (248, 140, 28),
    "yellow": (246, 222, 56),
    "green": (52, 160, 70),
    "blue": (44, 92, 214),
    "purple": (132, 58, 172),
    "pink": (246, 142, 192),
}
GROUNDS = {
    "white": (240, 240, 240),
    "grey": (140, 140, 140),
    "black": (24, 24, 24),
    "tan": (204, 176, 136),
    "navy": (30, 40, 92),
    "mint": (176, 226, 200),
}
COUNTS = ("one", "two", "three", "four")
RELATIONS = ("none", "left of", "above")
CATEGORIES = ("colours", "counting", "positional", "unusual")
#: Colour–garment pairs that no training picture of the generator shows.
UNUSUAL = (
    ("purple", "shirt"),
    ("pink", "trousers"),
    ("yellow", "pullover"),
    ("orange", "dress"),
    ("blue", "sandal"),
    ("green", "sneaker"),
    ("red", "bag"),
    ("yellow", "boot"),
)


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `garment_b` and `colour_b` are empty unless there is a relation."""

    category: str
    garment_a: str
    colour_a: str
    ground: str
    count: int = 1
    relation: str = "none"
    garment_b: str = ""
    colour_b: str = ""

    @property
    def caption(self) -> str:
        return f"{self.subject} on a {self.ground} ground"

    @property
    def subject(self) -> str:
        if self.relation != "none":
            a, b = _phrase(self.colour_a, self.garment_a), _phrase(self.colour_b, self.garment_b)
            return f"{a} {self.relation} {b}"
        if self.count == 1:
            return _phrase(self.colour_a, self.garment_a)
        return f"{COUNTS[self.count - 1]} {self.colour_a} {_plural(self.garment_a)}"

    def as_row(self) -> dict[str, str | int]:
        return {"prompt": self.caption, **asdict(self)}


def _plural(garment: str) -> str:
    return garment if garment == "trousers" else garment + ("es" if garment.endswith("s") else "s")


def _phrase(colour: str, garment: str) -> str:
    if garment == "trousers":
        return f"{colour} trousers"
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {garment}"


def draw_scene(rng: np.random.Generator, category: str, hold_out: bool = True) -> Scene:
    """Draws a scene of a category.

    `hold_out` reserves the unusual colour–garment pairs for the category of that name.
    """
    if category == "unusual":
        colour, garment = UNUSUAL[rng.integers(len(UNUSUAL))]
        return Scene(category, garment, colour, _pick(rng, GROUNDS))
    colour, garment = _draw_pair(rng, hold_out)
    scene = Scene(category, garment, colour, _pick(rng, GROUNDS))
    if category == "counting":
        return replace(scene, count=int(rng.integers(2, 5)))
    if category == "positional":
        colour_b, garment_b = colour, garment
        while garment_b == garment:
            colour_b, garment_b = _draw_pair(rng, hold_out)
        return replace(
            scene, relation=_pick(rng, RELATIONS[1:]), garment_b=garment_b, colour_b=colour_b
        )
    return scene


def siblings(rng: np.random.Generator, scene: Scene, n: int) -> list[Scene]:
    """The scene and n − 1 similar ones: hard negatives for contrastive training."""
    found = [scene]
    while len(found) < n:
        base, kind = found[rng.integers(len(found))], rng.integers(4)
        if kind == 0:
            other = replace(base, ground=_pick(rng, GROUNDS))
        elif base.relation != "none" and kind == 1:
            other = replace(
                base,
                garment_a=base.garment_b,
                colour_a=base.colour_b,
                garment_b=base.garment_a,
                colour_b=base.colour_a,
            )
        elif base.relation != "none" and kind == 2:
            other = replace(
                base,
                relation=_pick(rng, RELATIONS[1:]),
                colour_a=base.colour_b,
                colour_b=base.colour_a,
            )
        elif base.count > 1 and kind == 1:
            other = replace(base, count=int(rng.integers(2, 5)))
        else:
            colour, garment = _draw_pair(rng, True)
            other = (
                replace(base, colour_a=colour)
                if rng.random() < 0.5
                else replace(base, garment_a=garment)
            )
        pairs = {(other.colour_a, other.garment_a), (other.colour_b, other.garment_b)}
        if other not in found and other.garment_a != other.garment_b and not pairs & set(UNUSUAL):
            found.append(other)
    return found


def _pick(rng: np.random.Generator, options) -> str:
    return list(options)[rng.integers(len(options))]


def _draw_pair(rng: np.random.Generator, hold_out: bool) -> tuple[str, str]:
    while True:
        pair = (_pick(rng, COLOURS), _pick(rng, GARMENTS))
        if not (hold_out and pair in UNUSUAL):
            return pair


# --- pictures ---


def render(
    rng: np.random.Generator, scene: Scene, photographs: dict[str, np.ndarray]
) -> np.ndarray:
    """Draws the scene (SIZE × SIZE × 3, uint8).

    `rng` chooses the photographs, sizes, places and light.
    """
    ys, xs = np.mgrid[0:SIZE, 0:SIZE] / (SIZE - 1) - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.16) * (np.cos(angle) * xs + np.sin(angle) * ys)
    ground = np.array(GROUNDS[scene.ground]) * rng.uniform(0.95, 1.05) + rng.uniform(-5, 5, 3)
    canvas = (ground * light[..., None]).astype(np.float32)
    for (cx, cy, size), (colour, garment) in zip(_places(rng, scene), _things(scene), strict=True):
        photograph = photographs[garment][rng.integers(len(photographs[garment]))]
        tint = np.array(COLOURS[colour]) * rng.uniform(0.94, 1.04) + rng.uniform(-8, 8, 3)
        _paste(canvas, photograph, tint, cx, cy, size)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def _things(scene: Scene) -> list[tuple[str, str]]:
    first = (scene.colour_a, scene.garment_a)
    return (
        [first, (scene.colour_b, scene.garment_b)]
        if scene.relation != "none"
        else [first] * scene.count
    )


def _places(rng: np.random.Generator, scene: Scene) -> list[tuple[int, int, int]]:
    """The centre and size of each thing, in pixels.

    The smallest size is 25, near a photograph's own 28, so that its texture survives.
    """
    if scene.relation == "none" and scene.count == 1:
        size = int(rng.integers(40, 55))
        spare = (SIZE - size) // 2
        return [
            (
                int(32 + rng.integers(-spare, spare + 1)),
                int(32 + rng.integers(-spare, spare + 1)),
                size,
            )
        ]
    if scene.relation != "none" or scene.count == 2:
        layout = {"left of": 0, "above": 1}.get(scene.relation, int(rng.integers(3)))
        drift = (
            rng.integers(-8, 9, 2) if layout < 2 else (-15, 15) if rng.random() < 0.5 else (15, -15)
        )
        across = [(17, 32 + drift[0]), (47, 32 + drift[1])]
        centres = [(y, x) for x, y in across] if layout == 1 else across
    else:
        cells = [(17, 17), (47, 17), (17, 47), (47, 47)]
        centres = [cells[i] for i in sorted(rng.permutation(4)[: scene.count])]
    return [
        (int(x + rng.integers(-1, 2)), int(y + rng.integers(-1, 2)), int(rng.integers(25, 29)))
        for x, y in centres
    ]


def _paste(
    canvas: np.ndarray, photograph: np.ndarray, tint: np.ndarray, cx: int, cy: int, size: int
) -> None:
    shade, alpha = _resize(photograph[0], size), _resize(photograph[1], size)[..., None]
    x0, y0 = cx - size // 2, cy - size // 2
    top, left = max(0, -y0), max(0, -x0)
    bottom, right = min(size, SIZE - y0), min(size, SIZE - x0)
    window = canvas[y0 + top : y0 + bottom, x0 + left : x0 + right]
    thing = tint * (0.4 + 0.6 * shade[top:bottom, left:right, None])
    window += alpha[top:bottom, left:right] * (thing - window)


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    return (
        np.asarray(
            Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC), np.float32
        )
        / 255
    )


# --- samples ---

#: Shares of the categories in training.
MIX = {"colours": 0.3, "counting": 0.3, "positional": 0.4}
ALL = {"colours": 0.25, "counting": 0.25, "positional": 0.35, "unusual": 0.15}


def sample(
    seed: int, index: int, photographs: dict[str, np.ndarray], mix: dict[str, float] = MIX
) -> tuple[Scene, np.ndarray]:
    """The picture number `index` of the stream `seed`."""
    rng = np.random.default_rng([seed, index])
    scene = draw_scene(rng, str(rng.choice(list(mix), p=list(mix.values()))))
    return scene, render(rng, scene, photographs)
