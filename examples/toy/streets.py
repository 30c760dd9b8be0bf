"""One image of the toy benchmark MiniGTA -> MiniCityscapes: a street of the game, or of one of three cities.

Both domains share the geometry. The game has the colours, textures and shapes of ``GAME``; a city replaces them class
by class, the more the larger an image's ``gap`` is, and adds haze, a vignette and noise. Every number is arithmetic
on uniform draws (no exp, no normal draws), so that a seed gives the same bytes on every machine.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Colour = tuple[float, float, float]

HEIGHT, WIDTH = 192, 384
FOCAL, CAMERA = 0.7 * WIDTH, 1.5  # pixels; metres above the road
ROAD, SIDEWALK, BUILDING, WALL, POLE, LIGHT, SIGN, VEGETATION, TERRAIN, SKY, PERSON, RIDER, CAR = (
    *range(4),
    *range(5, 14),
)
BICYCLE = 18
CITIES = ("oldtown", "harbour", "hilltown")
OLDTOWN, HARBOUR, HILLTOWN = range(3)

GAME: dict[int, list[Colour]] = {
    ROAD: [(88, 88, 98)],
    SIDEWALK: [(178, 160, 150)],
    BUILDING: [(176, 92, 66), (222, 202, 152), (112, 130, 170)],
    WALL: [(160, 152, 132)],
    POLE: [(66, 66, 74)],
    LIGHT: [(34, 36, 40)],
    SIGN: [(206, 36, 36), (40, 84, 196), (240, 240, 240), (244, 200, 40)],
    VEGETATION: [(64, 132, 52), (88, 152, 62)],
    TERRAIN: [(132, 164, 78)],
    SKY: [(104, 160, 232), (140, 185, 235), (200, 212, 226)],
    PERSON: [(204, 60, 60), (60, 92, 190), (230, 202, 80), (110, 66, 130), (60, 150, 140)],
    RIDER: [(232, 120, 40), (60, 170, 190)],
    CAR: [(204, 34, 34), (34, 66, 196), (236, 236, 236), (32, 32, 38), (226, 190, 48)],
    BICYCLE: [(44, 44, 50)],
}
CITY: dict[int, list[list[Colour]]] = {
    ROAD: [[(150, 112, 94)], [(66, 72, 92)], [(176, 176, 184)]],
    SIDEWALK: [[(98, 100, 106)], [(92, 122, 118)], [(150, 104, 86)]],
    BUILDING: [
        [(214, 198, 166), (196, 170, 140)],
        [(72, 72, 92), (92, 76, 88)],
        [(168, 92, 80), (96, 118, 108), (190, 150, 84)],
    ],
    WALL: [[(104, 112, 82)], [(116, 92, 128)], [(116, 82, 58)]],
    POLE: [[(58, 78, 60)], [(176, 170, 150)], [(190, 90, 60)]],
    LIGHT: [[(150, 120, 40)], [(110, 112, 120)], [(90, 60, 50)]],
    SIGN: [
        [(40, 120, 80), (120, 80, 50), (230, 225, 205)],
        [(240, 150, 40), (40, 170, 170), (200, 90, 150)],
        [(90, 40, 110), (40, 60, 90), (210, 120, 50)],
    ],
    VEGETATION: [
        [(196, 128, 44), (172, 84, 40), (150, 138, 56)],
        [(34, 66, 66), (46, 74, 56)],
        [(186, 196, 200), (112, 100, 92)],
    ],
    TERRAIN: [[(160, 112, 62), (140, 104, 70)], [(62, 78, 62)], [(228, 232, 240)]],
    SKY: [[(228, 208, 176)], [(72, 64, 108)], [(206, 204, 212)]],
    PERSON: [
        [(96, 74, 56), (120, 104, 84), (70, 84, 60)],
        [(198, 186, 84), (90, 130, 150), (150, 150, 160)],
        [(60, 70, 100), (130, 60, 70), (90, 90, 100)],
    ],
    RIDER: [[(80, 96, 66), (140, 90, 60)], [(210, 140, 60), (150, 190, 90)], [(70, 60, 110), (170, 60, 70)]],
    CAR: [
        [(124, 112, 70), (150, 126, 96), (84, 60, 48)],
        [(190, 196, 120), (96, 140, 140), (150, 110, 150)],
        [(206, 208, 214), (80, 100, 130), (120, 50, 56)],
    ],
    BICYCLE: [[(110, 50, 40)], [(150, 150, 130)], [(70, 90, 140)]],
}
# relative amplitude of the texture noise in the game and in a city, %
TEXTURE: dict[int, tuple[float, float]] = {
    **dict.fromkeys(GAME, (4, 8)),
    ROAD: (3, 9),
    SIDEWALK: (4, 9),
    BUILDING: (5, 10),
    WALL: (5, 11),
    VEGETATION: (14, 17),
    TERRAIN: (8, 13),
    SKY: (1, 1),
}
SNOW: Colour = (232, 236, 242)


class Street(NamedTuple):
    """(192, 384, 3) uint8 RGB, (192, 384) uint8 Cityscapes train ids, "game" or the city, and the gap in [0, 1]."""

    image: Array
    label: Array
    city: str
    gap: float


def draw(domain: str, seed: int, index: int) -> Street:
    """Image ``index`` of the domain "game" or "city"; a pure function, about 40 ms."""
    look = Look(domain, np.random.default_rng([99, seed, domain == "city", index]))
    scene = Scene(look, np.random.default_rng([1, seed, domain == "city", index]))
    scene.sky()
    scene.ground()
    scene.facades()
    scene.objects()
    image = scene.develop()
    return Street(image, scene.label, "game" if look.city is None else CITIES[look.city], look.gap)


class Look:
    """How far each class of one image is on its way from the game to the city, and the colours that follow."""

    def __init__(self, domain: str, rng: np.random.Generator) -> None:
        self.rng = rng
        if domain == "game":
            self.city, self.gap = None, rng.uniform(0, 0.15)
            self.shift = dict.fromkeys(GAME, 0.0)
        else:
            self.city, self.gap = int(rng.integers(3)), rng.uniform(0.15, 0.9)
            self.shift = {c: min(max(self.gap + rng.uniform(-0.2, 0.2), 0.0), 1.0) for c in GAME}
            self.shift[WALL] *= 0.65

    def colour(self, kind: int) -> Array:
        """A colour of the class for one instance."""
        colour = _pick(self.rng, GAME[kind])
        if self.city is not None:
            colour = _blend(colour, _pick(self.rng, CITY[kind][self.city]), self.shift[kind])
        varied: Array = colour * self.rng.uniform(0.88, 1.12) + 7 * _normal(self.rng, (3,))
        return varied

    def chance(self, kind: int, probability: float = 1.0) -> bool:
        """Whether an instance takes a shape of the city."""
        return bool(self.rng.random() < probability * self.shift[kind])

    def amount(self, kind: int, city: int) -> float:
        """How strong a pattern of ``city`` shows; 0 elsewhere."""
        return self.shift[kind] if self.city == city else 0.0


class Scene:
    """The picture while it is painted, far to near: colour, class and depth of every pixel."""

    def __init__(self, look: Look, rng: np.random.Generator) -> None:
        self.look, self.rng = look, rng
        self.city_layout = look.city is not None
        self.horizon, self.vanishing = HEIGHT * rng.uniform(0.36, 0.46), WIDTH * rng.uniform(0.38, 0.62)
        self.rgb = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        self.label = np.full((HEIGHT, WIDTH), SKY, np.uint8)
        self.depth = np.full((HEIGHT, WIDTH), 400, np.float32)
        self.x = np.arange(WIDTH, dtype=np.float32) + 0.5
        self.y = np.arange(HEIGHT, dtype=np.float32)[:, None] + 0.5
        narrow, wide = (0.85, 1.35) if self.city_layout else (1.0, 1.0)
        self.kerb = [rng.uniform(2.6, 6) * narrow for _ in range(2)]  # metres left and right of the camera
        self.walk = [edge + rng.uniform(1.2, 3.5) * wide for edge in self.kerb]
        self.front = [edge + (0.0 if rng.random() < 0.45 else rng.uniform(1.5, 6)) for edge in self.walk]

    # --- the background

    def sky(self) -> None:
        look, rng = self.look, self.rng
        low = _blend(look.colour(SKY), np.array([255, 255, 255]), rng.uniform(0.25, 0.55))
        low = _blend(low, np.array([226, 146, 98]), 0.85 * look.amount(SKY, HARBOUR))
        share = np.minimum(self.y / self.horizon, 1)[..., None]
        self.rgb[:] = look.colour(SKY) * (1 - share) + low * share
        clouds = np.maximum(_noise(rng, 4, 3) - rng.uniform(-0.2, 0.6), 0)[..., None]
        self.rgb += clouds * rng.uniform(10, 34) * (-1 if look.city == HILLTOWN else 1)
        edges = np.sort(rng.random(int(rng.integers(7, 13)))) * WIDTH
        for left, right in zip([0.0, *edges], [*edges, float(WIDTH)], strict=True):
            kind = BUILDING if rng.random() < 0.55 else VEGETATION
            ragged = _noise(rng, 24, 1)[:1] * 3 if kind == VEGETATION else 0
            top = self.horizon - HEIGHT * rng.uniform(0.02, 0.14) + ragged
            mask = (self.x >= left) & (self.x < right) & (self.y >= top) & (self.y < self.horizon + 1)
            self.fill(mask, kind, look.colour(kind), 90)

    def ground(self) -> None:
        look, rng = self.look, self.rng
        first = int(self.horizon) + 1
        z = FOCAL * CAMERA / (self.y[first:] - self.horizon)
        x = (self.x - self.vanishing) * z / FOCAL
        near = 1 / (1 + z / 22 + (z / 22) ** 2 / 2 + (z / 22) ** 3 / 6)  # patterns fade as exp(-z / 22)
        edge = [np.where(x < 0, pair[0], pair[1]) for pair in (self.kerb, self.walk)]
        middle = (self.kerb[1] - self.kerb[0]) / 2
        label = np.where(abs(x) <= edge[0], ROAD, np.where(abs(x) <= edge[1], SIDEWALK, TERRAIN)).astype(np.uint8)
        road, walk, soil = (label == kind for kind in (ROAD, SIDEWALK, TERRAIN))
        part = self.rgb[first:]
        for kind, mask in ((ROAD, road), (SIDEWALK, walk), (TERRAIN, soil)):
            part[mask] = look.colour(kind)

        shade = np.ones_like(x)
        tiles = 1 - 0.15 * ((x % 1 < 0.06) | (z % 1 < 0.08))
        shade = np.where(walk, 1 + (tiles - 1) * near * (1 - look.shift[SIDEWALK]), shade)
        if look.city == OLDTOWN:
            stones, joints = _bricks(x, z, 0.5, 0.55, 0.12)
            road_shade = np.where(joints, 0.62, 0.85 + 0.3 * stones)
            walk_shade = np.where(_bricks(x, z, 0.4, 0.3, 0.14)[1], 1.35, 1)
        elif look.city == HARBOUR:
            road_shade = np.ones_like(x)
            walk_shade = np.where((np.floor(x / 0.7) + np.floor(z / 0.7)) % 2 == 0, 1.22, 0.78)
        else:
            tracks = sum(1 / (1 + ((x - middle - at) / 0.26) ** 2) ** 2 for at in (-2.4, -1, 1, 2.4))
            road_shade = 1 - 0.5 * np.minimum(tracks, 1)
            walk_shade = np.where(_bricks(x, z, 0.7, 0.35, 0.1)[1], 1.4, 1)
        fade = np.sqrt(near) if look.city == HILLTOWN else near  # wheel tracks run far
        shade = np.where(road, 1 + (road_shade - 1) * fade * look.shift[ROAD], shade)
        shade = np.where(walk, shade * (1 + (walk_shade - 1) * near * look.shift[SIDEWALK]), shade)
        shade = np.where(walk & (abs(x) < edge[0] + 0.18), shade * 1.12, shade)
        part *= shade[..., None]
        line = road & (abs(x - middle) < 0.09) & ((z + rng.uniform(0, 4)) % 4.5 < 2)
        part[line] = np.array([225, 225, 220])
        leaves = rng.random(x.shape) < np.where(soil, 0.25, 0.05) * look.amount(TERRAIN, OLDTOWN)
        part[leaves] = _blend(part[leaves], np.array([206, 120, 36]), 0.8)
        part += (_noise(rng, 6, 3)[first:] * (2 + 4 * look.gap))[..., None]  # stains
        if not self.city_layout and rng.random() < 0.7:  # shadows of houses that the picture does not show
            band = (x + rng.uniform(-0.8, 0.8) * z) / rng.uniform(9, 18) + rng.random()
            part[band % 1 < 0.4] *= 0.72
        self.label[first:], self.depth[first:] = label, z

    def facades(self) -> None:
        """Two vertical planes along the street, cut into houses, walls, hedges and gaps."""
        for side in (0, 1):
            at, end, far = 1.0, 0.0, self.rng.uniform(45, 65)
            with np.errstate(divide="ignore"):
                z = FOCAL * self.front[side] / (abs(self.x - self.vanishing))
            z[(self.x < self.vanishing) != (side == 0)] = np.inf
            while at < far:
                end = at + self.rng.uniform(6, 18)
                columns = np.flatnonzero((z >= at) & (z < min(end, far)))
                kind = (BUILDING, WALL, VEGETATION, None)[int(np.searchsorted([0.49, 0.75, 0.94], self.rng.random()))]
                if kind is not None:
                    self._facade(kind, columns, z[columns])
                at = end

    def _facade(self, kind: int, columns: Array, z: Array) -> None:
        look, rng = self.look, self.rng
        low, high = {BUILDING: (5, 16), WALL: (1.8, 3.4), VEGETATION: (3, 8)}[kind]
        top = rng.uniform(low, high)
        colour, pitch = look.colour(kind), (rng.uniform(2, 3.2), rng.uniform(2.6, 3.4))
        ragged, salt = _noise(rng, 40, 1)[0], int(rng.integers(1 << 16))
        if not len(columns):
            return
        where = (slice(0, HEIGHT), slice(int(columns[0]), int(columns[-1]) + 1))
        v = CAMERA - (self.y - self.horizon) * z / FOCAL  # metres above the ground
        u = np.broadcast_to(z, v.shape)
        mask = (v >= 0) & (v <= (top + 0.5 * ragged[columns] if kind == VEGETATION else top))
        paint = {BUILDING: self._house, WALL: self._wall, VEGETATION: self._hedge}[kind]
        rgb = paint(np.broadcast_to(colour, (*v.shape, 3)).astype(np.float32), u, v, top, pitch, salt)
        self.fill(mask, kind, rgb, u, where)

    def _house(self, rgb: Array, u: Array, v: Array, top: float, pitch: tuple[float, float], salt: int) -> Array:
        look = self.look
        across, up = u / pitch[0] % 1, v / pitch[1] % 1
        cell = _hash(np.floor(u / pitch[0]), np.floor(v / pitch[1]), salt)
        if look.city == OLDTOWN:
            beams = (across < 0.09) | (up < 0.1) | ((abs(across - up) < 0.09) & (cell < 0.5))
            rgb = _blend(rgb, np.array([84, 56, 42]), look.shift[BUILDING] * beams[..., None])
        elif look.city == HARBOUR:
            rgb = rgb * (1 + 0.6 * look.shift[BUILDING] * (up < 0.14))[..., None]
        elif look.city == HILLTOWN:
            rgb = rgb * (1 - 0.28 * look.shift[BUILDING] * (v / 0.5 % 1 < 0.2))[..., None]
            rgb = _blend(rgb, np.array(SNOW), look.shift[BUILDING] * (v > top - 1.2)[..., None])
        window = (abs(across - 0.5) < 0.24) & (abs(up - 0.54) < 0.24) & (v < top - 0.6)
        lit = cell > 1 - (0 if look.city is None else (0.05, 0.55, 0.4)[look.city] * look.shift[BUILDING])
        rgb = np.where(window[..., None], np.where(lit[..., None], (248, 206, 112), (58, 68, 86)), rgb)
        return np.where((v > top - 0.3)[..., None], rgb * 0.8, rgb)

    def _wall(self, rgb: Array, u: Array, v: Array, top: float, pitch: tuple[float, float], salt: int) -> Array:
        look = self.look
        rgb = rgb * (1 - 0.16 * (v / 0.4 % 1 < 0.18))[..., None]
        if look.city == OLDTOWN:
            rgb = rgb * (1 - 0.45 * look.shift[WALL] * (_bricks(u, v, 0.6, 0.4, 0, salt)[0] < 0.35))[..., None]
        elif look.city == HARBOUR:
            panels = _hash(np.floor(u / 1.5), np.floor(v / 0.9), salt) < 0.4
            rgb = _blend(rgb, np.array([60, 170, 160]), look.shift[WALL] * panels[..., None])
        elif look.city == HILLTOWN:
            rgb = rgb * (1 - 0.35 * look.shift[WALL] * (u / 0.35 % 1 < 0.18))[..., None]
            rgb = _blend(rgb, np.array(SNOW), look.shift[WALL] * (v > top - 0.35)[..., None])
        return rgb

    def _hedge(self, rgb: Array, u: Array, v: Array, top: float, pitch: tuple[float, float], salt: int) -> Array:
        leaf = _bricks(u, v, 0.45, 0.4, 0, salt)[0][..., None]
        rgb = rgb * (0.85 + 0.3 * leaf)
        if self.look.city == OLDTOWN:
            rgb = _blend(rgb, np.array([206, 150, 60]), self.look.shift[VEGETATION] * (leaf > 0.75))
        elif self.look.city == HILLTOWN:
            rgb = _blend(rgb, np.array(SNOW), self.look.shift[VEGETATION] * (leaf > 0.65))
        return rgb

    # --- things on the street

    def objects(self) -> None:
        rng, more = self.rng, self.city_layout
        things: list[tuple[float, Any, float]] = []

        def add(count: int, thing: Any, near: float, far: float, lateral: Any) -> None:
            for _ in range(count):
                harmonic = 1 / rng.uniform(1 / far, 1 / near)
                z = 0.5 * harmonic + 0.5 * rng.uniform(near, far)
                things.append((z, thing, lateral()))

        def on_walk() -> float:
            side = int(rng.integers(2))
            return (-1, 1)[side] * rng.uniform(self.kerb[side] + 0.3, self.walk[side] - 0.2)

        def on_road() -> float:
            return rng.uniform(1 - self.kerb[0], self.kerb[1] - 1)

        def anywhere() -> float:
            return on_walk() if rng.random() < 0.8 else on_road()

        def beside() -> float:
            side = int(rng.integers(2))
            return (-1, 1)[side] * (self.kerb[side] + rng.uniform(0.2, 0.7))

        def behind() -> float:
            side = int(rng.integers(2))
            return (-1, 1)[side] * max(self.front[side] - rng.uniform(0.3, 1.5), self.kerb[side] + 0.5)

        add(int(rng.integers(2, 6)), self._car, 7, 45, on_road)
        add(int(rng.integers(3, 9)) + more, self._person, 6, 30, anywhere)
        add(int(rng.integers(2, 5)), self._rider, 6, 20, anywhere)
        add(int(rng.integers(0, 3)) + (more and rng.random() < 0.6), self._bicycle, 6, 20, on_walk)
        add(int(rng.integers(3, 8)), self._pole, 7, 40, beside)
        add(int(rng.integers(1, 5)), self._tree, 8, 40, behind)
        for z, thing, lateral in sorted(things, key=lambda item: -item[0]):
            thing(z, lateral)

    def _car(self, z: float, x: float) -> None:
        look, rng = self.look, self.rng
        colour, van = look.colour(CAR), look.chance(CAR)
        roof = 1.45 + (rng.uniform(0.25, 0.6) if van else 0)
        for step in (3.6, 2.7, 1.8, 0.9, 0.0):  # the far end first: the side shows in perspective
            u, v, where = self.local(z + step, x, 1.0, roof + 0.1)
            slope = 0.0 if van else 0.3
            cabin = (v >= 0.9) & (v < roof) & (abs(u) < 0.88 - slope * (v - 0.9) / (roof - 0.9))
            shape = ((v >= 0.28) & (v < 0.95) & (abs(u) < 0.92)) | cabin
            wheels = (v >= 0) & (v < 0.34) & (abs(abs(u) - 0.72) < 0.16)
            self.fill(shape, CAR, colour * (0.62 if step else 1), z + step, where)
            if look.city == HILLTOWN:
                self.tint(cabin & (v > roof - 0.22), np.array(SNOW), look.shift[CAR], where)
            self.fill(wheels, CAR, np.array([26, 26, 28]), z + step, where)
        glass = cabin & (v > 1.0) & (v < roof - 0.12) & (abs(u) < 0.74 - slope * (v - 0.9) / (roof - 0.9))
        self.tint(glass, np.array([44, 54, 66]), 1, where)
        lamps = (abs(abs(u) - 0.7) < 0.15) & (abs(v - 0.68) < 0.09)
        front = rng.random() < 0.5
        self.tint(lamps, np.array([250, 240, 200] if front else [200, 30, 30]), 1, where)
        self.tint((v >= 0.36) & (v < 0.46) & (abs(u) < 0.25), np.array([220, 220, 210]), 1, where)
        if look.city == HARBOUR:
            glow = np.maximum(1 - 2.2 * (abs(abs(u) - 0.7) + abs(v - 0.68)), 0)[..., None]
            self.rgb[where] += glow * look.shift[CAR] * np.array([150, 130, 80])

    def _person(self, z: float, x: float) -> None:
        self._figure(z, x, PERSON)
        if self.rng.random() < 0.4:
            self._figure(z, x + self.rng.uniform(0.5, 0.7), PERSON)

    def _figure(self, z: float, x: float, kind: int, seat: float = 0.0) -> None:
        """A standing person, or a rider whose hips are ``seat`` metres higher."""
        look, rng = self.look, self.rng
        size, colour = rng.uniform(0.9, 1.1), look.colour(kind)
        trousers = colour * 0.35 + np.array([14, 14, 22])
        u, v, where = self.local(z, x, 0.75, 2.5 * size + seat)
        u, v = u / size, (v - seat) / size
        legs = (v >= (0.0 if not seat else 0.15)) & (v < 0.84) & (abs(abs(u) - 0.11) < 0.08)
        torso = (v >= 0.8) & (v < 1.45) & (abs(u) < 0.25)
        arms = (v >= 0.85) & (v < 1.42) & (abs(abs(u) - 0.31) < 0.06)
        head = u**2 + (v - 1.6) ** 2 < 0.145**2
        self.fill(legs, kind, trousers, z, where)
        if look.chance(kind):  # a long coat
            torso |= (v >= 0.35) & (v < 1.45) & (abs(u) < 0.37 - 0.14 * (v - 0.35))
        self.fill(torso | arms, kind, colour, z, where)
        self.fill(head, kind, np.array([206, 164, 136]) * rng.uniform(0.6, 1.1), z, where)
        if look.chance(kind, 0.8):  # a hat or helmet, and a bag
            hat = (abs(u) < 0.2) & (v > 1.64) & (v < 1.8)
            bag = (abs(u - 0.42) < 0.14) & (v > 0.55) & (v < 0.95)
            self.fill(hat | bag, kind, 255 - colour, z, where)
        if look.city == HARBOUR and kind == PERSON and look.chance(kind, 0.5):
            umbrella = (u**2 + (v - 1.85) ** 2 < 0.62**2) & (v > 1.85)
            self.fill(umbrella, kind, look.colour(kind), z, where)

    def _bicycle(self, z: float, x: float) -> None:
        look = self.look
        u, v, where = self.local(z, x, 1.1, 1.3)
        rim = 0.38 - 0.08 * look.shift[BICYCLE]
        radius = np.sqrt((abs(u) - 0.55) ** 2 + (v - rim) ** 2)
        frame = (abs(v - rim - 0.42 * (1 - abs(u) / 0.55)) < 0.06) & (abs(u) < 0.55)
        frame |= (abs(u - 0.5) < 0.045) & (v > rim) & (v < 1.02)
        frame |= (abs(u + 0.22) < 0.045) & (v > rim) & (v < 0.95)
        crate = np.zeros_like(frame)
        if look.chance(BICYCLE, 0.6):
            crate = (abs(u - 0.55) < 0.24) & (v > 0.82) & (v < 1.12)
        self.label[where][(radius < rim) | frame | crate] = BICYCLE  # wheels are labelled as discs, drawn as rings
        ink = (abs(radius - rim + 0.05) < 0.05) | frame | crate
        if look.shift[BICYCLE] > 0.5:
            ink |= radius < 0.14
        self.fill(ink, BICYCLE, look.colour(BICYCLE), z, where)

    def _rider(self, z: float, x: float) -> None:
        self._bicycle(z, x)
        self._figure(z - 0.05, x - 0.1, RIDER, seat=0.3)

    def _pole(self, z: float, x: float) -> None:
        look, rng = self.look, self.rng
        half, top, kind = rng.uniform(0.13, 0.19), rng.uniform(3.6, 6), rng.random()
        u, v, where = self.local(z, x, 2.4, 6.5)
        shape = (abs(u) < half) & (v >= 0) & (v < top)
        inward = -1.0 if x > 0 else 1.0
        if kind >= 0.78:  # an arm, for a lamp or nothing
            shape |= (abs(v - top + 0.15) < 0.13) & (u * inward > 0) & (u * inward < 1.9)
        self.fill(shape, POLE, look.colour(POLE), z, where)
        if look.city == HILLTOWN:
            self.tint(shape & (v % 0.9 < 0.4), np.array(SNOW), look.shift[POLE], where)
        if kind < 0.5:
            self._sign(u, v - rng.uniform(2.6, 3.3), z, where)
        elif kind < 0.78:
            self._light(u, v - rng.uniform(3.0, 3.6), z, where)

    def _sign(self, u: Array, v: Array, z: float, where: Any) -> None:
        look, rng = self.look, self.rng
        radius, colour, form = rng.uniform(0.5, 0.75), look.colour(SIGN), int(rng.integers(3))
        mark = u**2 + v**2 < (0.45 * radius) ** 2
        if look.chance(SIGN) and look.city == HARBOUR:
            shape = (abs(u) < 1.45 * radius) & (abs(v) < 0.6 * radius)
        elif look.chance(SIGN) and look.city is not None:
            shape = abs(u) + abs(v) < 1.25 * radius
            mark = (abs(u) < 0.14 * radius) & (abs(v) < 0.6 * radius) if look.city == OLDTOWN else mark
        else:
            shape = (
                u**2 + v**2 < radius**2,
                (abs(u) < 0.85 * radius) & (abs(v) < 0.85 * radius),
                (v > -0.8 * radius) & (abs(u) < 0.6 * (radius - v)),
            )[form]
        self.fill(shape, SIGN, colour, z, where)
        self.tint(mark & shape, np.array([244, 244, 236]) if colour.mean() < 200 else np.array([40, 40, 46]), 1, where)

    def _light(self, u: Array, v: Array, z: float, where: Any) -> None:
        look, rng = self.look, self.rng
        along, across = (v, u)
        size = (0.36, 0.65)
        if look.chance(LIGHT):  # horizontal
            along, across, size = u, v, (0.325, 0.75)
        self.fill((abs(across) < size[0]) & (abs(along) < size[1]), LIGHT, look.colour(LIGHT), z, where)
        on = int(rng.integers(3))
        for i, lamp in enumerate(((60, 220, 120), (250, 200, 50), (246, 50, 40))):
            disc = across**2 + (along - 0.42 * (i - 1)) ** 2 < 0.17**2
            self.tint(disc, np.array(lamp) * (1 if i == on else 0.3), 1, where)

    def _tree(self, z: float, x: float) -> None:
        look, rng = self.look, self.rng
        u, v, where = self.local(z, x, 2.6, 6.5)
        self.fill((abs(u) < 0.2) & (v >= 0) & (v < 3), VEGETATION, np.array([92, 68, 48]), z, where)
        height = rng.uniform(3.2, 4.2)
        crown = np.zeros(u.shape, bool)
        for _ in range(7):
            centre, radius = (rng.uniform(-0.9, 0.9), height + rng.uniform(-0.7, 0.9)), rng.uniform(0.6, 1.1)
            disc = (u - centre[0]) ** 2 + (v - centre[1]) ** 2 < radius**2
            crown |= disc
            self.fill(disc, VEGETATION, look.colour(VEGETATION), z, where)
        leaves: dict[int | None, list[Colour]] = {
            OLDTOWN: [(226, 160, 60), (150, 70, 30)],
            HILLTOWN: [SNOW, SNOW, (104, 84, 66)],
        }
        if look.city in leaves:
            for _ in range(int(36 * look.shift[VEGETATION])):
                disc = (u - rng.uniform(-1.8, 1.8)) ** 2 + (v - height - rng.uniform(-1.6, 1.8)) ** 2 < 0.2**2
                self.tint(disc & crown, _pick(rng, leaves[look.city]), 0.9, where)

    # --- the brush

    def local(self, z: float, x: float, half: float, top: float) -> tuple[Array, Array, Any]:
        """Metres right of (x, z) and above the ground, over the pixels that the object can reach."""
        left, right = (self.vanishing + FOCAL * (x + end) / z for end in (-half, half))
        high, low = (self.horizon + FOCAL * (CAMERA - end) / z for end in (top, -0.1))
        rows = slice(min(max(int(high), 0), HEIGHT), min(max(int(low) + 2, 0), HEIGHT))
        columns = slice(min(max(int(left), 0), WIDTH), min(max(int(right) + 2, 0), WIDTH))
        u = (self.x[columns] - self.vanishing) * z / FOCAL - x
        v = CAMERA - (self.y[rows] - self.horizon) * z / FOCAL
        u, v = np.broadcast_arrays(u, v)
        return u, v, (rows, columns)

    def fill(self, mask: Array, kind: int, colour: Array, depth: Any, where: Any = ...) -> None:
        """Class, colour and depth of the pixels under ``mask``, a mask of the region ``where``."""
        self.rgb[where][mask] = colour[mask] if colour.ndim > 1 else colour
        self.label[where][mask] = kind
        self.depth[where][mask] = depth[mask] if isinstance(depth, np.ndarray) else depth

    def tint(self, mask: Array, colour: Array, amount: float, where: Any) -> None:
        """Colour alone, blended."""
        region = self.rgb[where]
        region[mask] = _blend(region[mask], colour, amount)

    def develop(self) -> Array:
        """Texture, wet road, and what the camera adds."""
        look, rng = self.look, self.rng
        amplitude = np.zeros(256, np.float32)
        for kind, (game, city) in TEXTURE.items():
            amplitude[kind] = (game + (city - game) * (look.shift[kind] if self.city_layout else look.gap)) / 100
        rgb = self.rgb * (1 + amplitude[self.label] * _noise(rng, 12, 4))[..., None]
        if look.city == HARBOUR:
            rgb = self._reflections(rgb)
            rgb = rgb * (1 - np.array([0.3, 0.27, 0.15]) * look.gap)
        strength = look.gap * (0.45 if self.city_layout else 1.0)
        distance = self.depth / rng.uniform(70, 130)
        haze = strength * (1 - 1 / (1 + distance + distance**2 / 2 + distance**3 / 6))[..., None]
        rgb = _blend(rgb, np.array([190, 196, 194]), haze)
        grey = (0.3 * rgb[..., 0] + 0.59 * rgb[..., 1] + 0.11 * rgb[..., 2])[..., None]
        rgb = _blend(rgb, grey, 0.3 * strength)
        rgb = 128 + (rgb - 128) * (1 - 0.2 * strength) + rng.uniform(-16, 16)
        rgb = rgb * (1 + strength * np.array([-0.05, 0.03, -0.03]) + 0.02 * _normal(rng, (3,)))
        radius = ((self.x / WIDTH - 0.5) ** 2 + (self.y / HEIGHT - 0.5) ** 2)[..., None]
        rgb = rgb * (1 - 0.45 * strength * 2 * radius)
        rgb = _blend(rgb, _blur(rgb), min(2 * strength, 1))
        rgb = rgb + (1.5 + (rng.uniform(4, 7) - 1.5) * strength) * _normal(rng, rgb.shape)
        return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)

    def _reflections(self, rgb: Array) -> Array:
        """The wet road mirrors what stands above the horizon, smeared downwards."""
        rows = np.arange(HEIGHT)
        mirrored = 2 * int(self.horizon) - rows
        smeared = sum(rgb[np.clip(mirrored - 4 * i, 0, HEIGHT - 1)] for i in range(-2, 3)) / 5
        amount = 0.6 * self.look.amount(ROAD, HARBOUR) * np.clip(0.7 + 0.5 * _noise(self.rng, 6, 2), 0, 1)
        return _blend(rgb, smeared, np.where(self.label == ROAD, amount, 0)[..., None])


def _blend(first: Array, second: Any, amount: Any) -> Array:
    blended: Array = first * (1 - amount) + second * amount
    return blended


def _pick(rng: np.random.Generator, colours: list[Colour]) -> Array:
    return np.array(colours[int(rng.integers(len(colours)))], np.float32)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Close to normal: the sum of four uniform draws, with variance 1."""
    draws: Array = (rng.random((4, *shape), dtype=np.float32).sum(axis=0) - 2) * 1.7320508
    return draws


def _noise(rng: np.random.Generator, cells: int, octaves: int) -> Array:
    """(HEIGHT, WIDTH) smooth noise with a deviation of about 1; ``cells`` a height in the coarsest octave."""
    total, weight, variance = np.zeros((HEIGHT, WIDTH), np.float32), 1.0, 0.0
    for octave in range(octaves):
        count = min(cells * 2**octave, HEIGHT)
        grid = rng.random((count + 1, 2 * count + 1), dtype=np.float32) * 2 - 1
        rows, row_share = _positions(HEIGHT, count)
        columns, column_share = _positions(WIDTH, 2 * count)
        across = _blend(grid[:, columns], grid[:, columns + 1], column_share)
        total += weight * _blend(across[rows], across[rows + 1], row_share[:, None])
        variance += weight**2
        weight *= 0.8
    noise: Array = total * (2.6 / variance**0.5)
    return noise


def _positions(size: int, count: int) -> tuple[Array, Array]:
    at = (np.arange(size, dtype=np.float32) + 0.5) * (count / size)
    index = np.minimum(at.astype(np.int64), count - 1)
    return index, (at - index).astype(np.float32)


def _hash(row: Array, column: Array, salt: int) -> Array:
    """A number in [0, 1) for each integer cell."""
    mixed = row.astype(np.int64) * 73856093 ^ column.astype(np.int64) * 19349663 ^ salt * 83492791
    mixed = (mixed ^ mixed >> 13) * 1274126177
    share: Array = ((mixed ^ mixed >> 16) & 1023) / np.float32(1024)
    return share


def _bricks(u: Array, v: Array, width: float, height: float, joint: float, salt: int = 0) -> tuple[Array, Array]:
    """A number in [0, 1) for each brick of a running bond, and where the joints are."""
    row = np.floor(v / height)
    along = u / width + 0.5 * (row % 2)
    return _hash(np.floor(along), row, salt), (along % 1 < joint) | (v / height % 1 < joint)


def _blur(rgb: Array) -> Array:
    """1 2 1 in both directions."""
    for axis in (0, 1):
        size = rgb.shape[axis]
        padded = rgb.take(np.clip(np.arange(-1, size + 1), 0, size - 1), axis)
        before, after = (padded.take(np.arange(i, i + size), axis) for i in (0, 2))
        rgb = (before + 2 * rgb + after) / 4
    return rgb
