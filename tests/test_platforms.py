"""The platforms' records: complete, consistent, and with sizes that their own rules accept."""

from dataclasses import FrozenInstanceError

import pytest

from rdtf_diffusers.stickers.platforms import PLATFORMS, SUFFIXES, find_platform


KEYS = (
    "whatsapp telegram telegram-emoji discord discord-emoji line slack wechat signal imessage twitch kakaotalk".split()
)
SHAPES = [(1, 1), (4, 3), (3, 4), (320, 270), (1000, 7), (7, 1000), (0.3, 0.2), (1, 100_000)]
platforms = pytest.mark.parametrize("platform", PLATFORMS.values(), ids=PLATFORMS)


def test_keys():
    assert list(PLATFORMS) == KEYS
    assert all(key == platform.key for key, platform in PLATFORMS.items())
    assert len({platform.name for platform in PLATFORMS.values()}) == len(KEYS)


@platforms
def test_records_are_complete_and_consistent(platform):
    assert platform.formats and set(platform.formats) <= set(SUFFIXES)
    assert 0 < platform.aim_bytes <= platform.max_bytes
    assert bool(platform.canvases) != bool(platform.box)
    assert platform.sources and all(
        source.place and source.date[:2] == "20" and source.grade in ("official", "third party")
        for source in platform.sources
    )
    assert 1 <= platform.min_frames <= (platform.max_frames or platform.min_frames)
    assert platform.still == (platform.min_frames == 1)
    assert platform.loops is None or 1 <= platform.loops[0] <= platform.loops[1]
    with pytest.raises(FrozenInstanceError):
        platform.max_bytes = 1


@platforms
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_canvases_fit_and_shrink(platform, shape):
    full = platform.canvas(*shape)
    sizes = [full, *platform.smaller_canvases(*shape)]
    assert all(platform.fits(*size) for size in sizes)
    areas = [width * height for width, height in sizes]
    assert areas == sorted(set(areas), reverse=True)
    if platform.box and not platform.square:  # the clip's own shape, to the nearest pixel, as large as it goes
        assert full[0] == platform.box[0] or full[1] == platform.box[1]
        scale = min(platform.box[0] / shape[0], platform.box[1] / shape[1])
        assert all(abs(side - max(1, length * scale)) <= 0.5 for side, length in zip(full, shape))


@pytest.mark.parametrize(
    ("key", "accepted", "refused"),
    [
        ("whatsapp", [(512, 512)], [(511, 512), (256, 256)]),
        ("telegram", [(512, 512), (512, 1), (300, 512)], [(511, 511), (512, 513), (512, 0)]),
        ("telegram-emoji", [(100, 100)], [(99, 100)]),
        ("line", [(270, 270), (320, 270), (320, 100), (10, 270), (300, 269)], [(269, 269), (270, 271), (321, 270)]),
        ("slack", [(128, 128), (1, 1), (128, 64)], [(129, 128)]),
        ("signal", [(512, 512), (10, 10)], [(512, 511), (513, 513), (9, 9)]),
        ("imessage", [(300, 300), (408, 408), (618, 618)], [(400, 400)]),
    ],
)
def test_sizes(key, accepted, refused):
    assert all(PLATFORMS[key].fits(*size) for size in accepted)
    assert not any(PLATFORMS[key].fits(*size) for size in refused)


def test_size_rules_in_words():
    words = {key: PLATFORMS[key].size_rule() for key in ("telegram", "line", "slack", "signal", "imessage")}
    assert words == {
        "telegram": "within 512x512, longer side exactly 512",
        "line": "within 320x270, longer side at least 270",
        "slack": "within 128x128",
        "signal": "square, within 512x512, longer side at least 10",
        "imessage": "408x408 or 618x618 or 300x300",
    }


def test_fallback_sizes():
    assert PLATFORMS["imessage"].smaller_canvases(1, 1) == [(300, 300)]
    assert PLATFORMS["slack"].smaller_canvases(2, 1) == [(96, 48), (64, 32)]
    assert PLATFORMS["line"].smaller_canvases(320, 270) == [(270, 228)]
    assert PLATFORMS["line"].smaller_canvases(1, 1) == []
    assert PLATFORMS["whatsapp"].smaller_canvases(1, 1) == []


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`width` and `height` must be above 0, got 0 and 5"):
        PLATFORMS["slack"].canvas(0, 5)
    assert find_platform("line") is PLATFORMS["line"] is find_platform(PLATFORMS["line"])
    with pytest.raises(ValueError, match=r"one of whatsapp, telegram, .*, not 'icq'"):
        find_platform("icq")
