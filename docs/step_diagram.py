"""One training step as an SVG: text stays text."""

WIDTH, HEIGHT = 640, 812
STUDENT, TEACHER, BOTH = "#3d9be0", "#e8792b", "#2aa876"
# (x, width) of boxes of the student
LEFT, RIGHT, WIDE = (12, 190), (218, 190), (12, 396)
AVERAGE = (446, 170)  # and of the teacher
MIX = (12, 604)


def box(place: tuple[int, int], y: int, text: str, colour: str, ink: str) -> str:
    """A rounded box around lines of text, as high as they need."""
    x, width = place
    lines = text.split("\n")
    spans = "".join(
        f'<text x="{x + width / 2:g}" y="{y + 22 + 18 * i}" text-anchor="middle" fill="{ink}">{line}</text>'
        for i, line in enumerate(lines)
    )
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{16 + 18 * len(lines)}" rx="7" fill="{colour}" '
        f'fill-opacity="0.14" stroke="{colour}" stroke-width="1.5"/>{spans}'
    )


def arrow(points: str, ink: str, *, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="6 5"' * dashed
    return f'<polyline points="{points}" fill="none" stroke="{ink}" stroke-width="1.5" marker-end="url(#tip)"{dashes}/>'


def boxes(ink: str) -> str:
    rows = [
        (WIDE, 40, "source image x_s, labels y_s", STUDENT),
        (LEFT, 104, "context crop\nhalf the resolution", STUDENT),
        (RIGHT, 104, "detail crop\nfull resolution", STUDENT),
        (LEFT, 186, "encoder, decoder,\nscale attention", STUDENT),
        (RIGHT, 186, "encoder,\ndecoder", STUDENT),
        (WIDE, 268, "fusion by the attention", STUDENT),
        (
            WIDE,
            332,
            "source loss, backward\n0.9 CE(fused, y_s) + 0.1 CE(detail, y_s in the box)\n+ feature distance (optional)",
            STUDENT,
        ),
        (AVERAGE, 40, "target image x_t", TEACHER),
        (AVERAGE, 104, "context, and detail\nwindows all over it", TEACHER),
        (AVERAGE, 186, "average of\nthe student", TEACHER),
        (AVERAGE, 268, "fusion, softmax", TEACHER),
        (AVERAGE, 332, "pseudo label p,\nconfidence weight q", TEACHER),
        (
            MIX,
            430,
            "class mix: half of the classes of (x_s, y_s) pasted onto (x_t, p, q)",
            BOTH,
        ),
        (MIX, 494, "colour jitter and blur of the mixed image", BOTH),
        (MIX, 558, "the student again, with a detail box of its own", STUDENT),
        (
            MIX,
            622,
            "mixed loss, backward\nweight: 1 on pasted pixels, q elsewhere",
            STUDENT,
        ),
        (MIX, 704, "one optimiser step", STUDENT),
    ]
    return "".join(box(place, y, text, colour, ink) for place, y, text, colour in rows)


def arrows(ink: str) -> str:
    down = [
        (107, 74, 102),
        (313, 74, 102),
        (107, 156, 184),
        (313, 156, 184),
        (107, 238, 266),
        (313, 238, 266),
    ]
    down += [
        (210, 302, 330),
        (427, 57, 428),
        (531, 74, 102),
        (531, 156, 184),
        (531, 238, 266),
        (531, 302, 330),
    ]
    down += [
        (531, 384, 428),
        (314, 464, 492),
        (314, 528, 556),
        (314, 592, 620),
        (314, 674, 702),
    ]
    lines = [arrow(f"{x},{start} {x},{end}", ink) for x, start, end in down]
    lines.append(
        f'<polyline points="408,57 427,57" fill="none" stroke="{ink}" stroke-width="1.5"/>'
    )
    lines.append(arrow("616,721 629,721 629,212 618,212", TEACHER, dashed=True))
    return "".join(lines)


def step_diagram(*, text: str, page: str) -> str:
    """The diagram in the colours of a page: of its text, and of the page itself."""
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    tip += f'<path d="M0 0L8 4L0 8z" fill="{text}"/></marker>'
    lines = [
        (210, 24, f'font-weight="600" fill="{STUDENT}"', "student, with gradient"),
        (531, 24, f'font-weight="600" fill="{TEACHER}"', "teacher, without"),
        (
            314,
            772,
            f'fill="{text}"',
            "The next step begins with teacher.update(student),",
        ),
        (314, 791, f'fill="{text}"', "the dashed arrow."),
    ]
    words = "".join(
        f'<text x="{x}" y="{y}" text-anchor="middle" {look}>{line}</text>'
        for x, y, look, line in lines
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" '
        f'font-size="14"><defs>{tip}</defs><rect width="{WIDTH}" height="{HEIGHT}" fill="{page}"/>'
        f"{words}{boxes(text)}{arrows(text)}</svg>\n"
    )
