"""What each chat platform accepts: one frozen record per platform, every number with its source and date.

    line = PLATFORMS["line"]
    line.canvas(400, 300)  # (320, 240): the largest size of that shape that LINE takes

Rules move: `sources` says where a record comes from, when that was read, and whether the platform itself says so.
Where a platform writes "KB" without saying which, 1000 bytes are meant here: a file within that passes either way.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple


# The file name ending for each format. LINE refuses .apng and so does Discord's form; .png passes everywhere.
SUFFIXES = MappingProxyType({"webp": ".webp", "gif": ".gif", "apng": ".png", "webm": ".webm"})
SHRINKING = (3 / 4, 1 / 2)  # of the full size, where a platform sets no exact one


class Source(NamedTuple):
    """Where a platform's rules stand, when that was written or last seen (year or year-month), and who says so."""

    place: str
    date: str
    grade: Literal["official", "third party"]


@dataclass(frozen=True, kw_only=True)
class Platform:
    """The rules for one kind of sticker on one platform.

    Attributes:
        key: the name for arguments, such as "telegram-emoji".
        name: the name for people.
        formats: accepted formats, the preferred one first: "webp", "gif", "apng" or "webm" (VP9 without audio).
        max_bytes: the platform's own limit for a file.
        aim_bytes: what to encode to, with a margin where the limit's unit allows one; at most `max_bytes`.
        canvases: the exact sizes (width, height) in pixels, the preferred one first; empty if `box` rules instead.
        box: the largest width and height in pixels.
        min_long_side: the least length of the longer side in pixels.
        square: width and height must be equal.
        max_seconds: longest time; with a finite loop count, of all loops together.
        whole_seconds: one play lasts a whole number of seconds.
        min_frames: fewest stored frames.
        max_frames: most stored frames.
        min_frame_ms: the shortest time that a frame may stand, in milliseconds.
        max_fps: most frames per second.
        max_flashes: most flashes within any second.
        loops: the fewest and most plays; None stands for endless, which is also what silent platforms get.
        palette: files with a colour palette work; where not, every pixel carries its own RGBA.
        transparent: the background must be transparent.
        still: a picture without motion is taken as well.
        cover: which part frame 0 plays: "end" where the animation comes to rest on it, "still" where it stands for the
            sticker in shops and lists; None if the platform gives it none.
        sources: where these rules stand, the main one first.
    """

    key: str
    name: str
    formats: tuple[str, ...]
    max_bytes: int
    aim_bytes: int
    sources: tuple[Source, ...]
    canvases: tuple[tuple[int, int], ...] = ()
    box: tuple[int, int] | None = None
    min_long_side: int = 1
    square: bool = False
    max_seconds: float | None = None
    whole_seconds: bool = False
    min_frames: int = 1
    max_frames: int | None = None
    min_frame_ms: int = 0
    max_fps: float | None = None
    max_flashes: int | None = None
    loops: tuple[int, int] | None = None
    palette: bool = True
    transparent: bool = False
    still: bool = False
    cover: Literal["end", "still"] | None = None

    def fits(self, width: int, height: int) -> bool:
        """Whether a picture of `width` x `height` pixels has a size that the platform takes."""
        if self.canvases:
            return (width, height) in self.canvases
        box_width, box_height = self.box
        inside = 1 <= width <= box_width and 1 <= height <= box_height
        return inside and max(width, height) >= self.min_long_side and (width == height or not self.square)

    def canvas(self, width: float, height: float) -> tuple[int, int]:
        """The size (width, height) in pixels to write a clip of the shape `width` : `height` in.

        An exact size, into which the clip is fitted with transparent margins, or the largest of the clip's own shape.

        Raises:
            ValueError: if a side is not above 0.
        """
        if not (width > 0 and height > 0):
            raise ValueError(f"`width` and `height` must be above 0, got {width} and {height}.")
        if self.canvases:
            return self.canvases[0]
        if self.square:
            width = height = 1
        scale = min(self.box[0] / width, self.box[1] / height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    def smaller_canvases(self, width: float, height: float) -> list[tuple[int, int]]:
        """The smaller sizes to fall back on, largest first; empty where the platform permits none.

        Raises:
            ValueError: if a side is not above 0.
        """
        full = self.canvas(width, height)
        if self.canvases:
            return sorted((canvas for canvas in self.canvases if canvas < full), reverse=True)
        least = self.min_long_side / max(full)
        scales = [scale for scale in SHRINKING if scale > least] + ([least] if SHRINKING[-1] < least < 1 else [])
        sizes = [tuple(max(1, math.floor(side * scale + 0.5)) for side in full) for scale in scales]
        return [size for size in sizes if self.fits(*size)]

    def size_rule(self) -> str:
        """The accepted sizes in words, such as "within 320x270, longer side at least 270"."""
        if self.canvases:
            return " or ".join(f"{width}x{height}" for width, height in self.canvases)
        rule = f"within {self.box[0]}x{self.box[1]}"
        if self.square:
            rule = f"square, {rule}"
        if self.min_long_side == max(self.box):
            return f"{rule}, longer side exactly {self.min_long_side}"
        return f"{rule}, longer side at least {self.min_long_side}" if self.min_long_side > 1 else rule


TELEGRAM = Source("core.telegram.org/stickers", "2026", "official")
DISCORD = Source("github.com/discord/discord-api-docs", "2026-08", "official")

_RECORDS = (
    Platform(
        key="whatsapp",
        name="WhatsApp sticker",
        formats=("webp",),
        canvases=((512, 512),),
        max_bytes=500 * 1024,  # the validators count 1024 bytes to a KB, the README does not say
        aim_bytes=500_000,
        max_seconds=10,
        min_frames=2,  # still stickers make packs of their own, with a lower limit
        min_frame_ms=8,
        cover="end",
        sources=(Source("github.com/WhatsApp/stickers, README and validators", "2025-11", "official"),),
    ),
    Platform(
        key="telegram",
        name="Telegram video sticker",
        formats=("webm",),
        box=(512, 512),
        min_long_side=512,
        max_bytes=256_000,
        aim_bytes=256_000,
        max_seconds=3,
        min_frames=2,
        max_fps=30,
        sources=(TELEGRAM,),
    ),
    Platform(
        key="telegram-emoji",
        name="Telegram video emoji",
        formats=("webm",),
        canvases=((100, 100),),
        max_bytes=256_000,
        aim_bytes=256_000,
        max_seconds=3,
        min_frames=2,
        max_fps=30,
        sources=(TELEGRAM,),
    ),
    Platform(
        key="discord",
        name="Discord sticker",
        formats=("apng", "gif"),
        canvases=((320, 320),),
        max_bytes=512 * 1024,
        aim_bytes=512_000,
        max_seconds=5,
        max_fps=60,  # third party; the official text is silent
        still=True,
        sources=(DISCORD,),
    ),
    Platform(
        key="discord-emoji",
        name="Discord emoji",
        formats=("webp", "gif"),  # AVIF is accepted too, but Pillow may lack it
        canvases=((128, 128),),
        max_bytes=256 * 1024,
        aim_bytes=256_000,
        still=True,
        sources=(DISCORD,),
    ),
    Platform(
        key="line",
        name="LINE animated sticker",
        formats=("apng",),
        box=(320, 270),
        min_long_side=270,
        max_bytes=300_000,  # a third-party survey of 2026 says 1 MB
        aim_bytes=300_000,
        max_seconds=4,
        whole_seconds=True,
        min_frames=5,
        max_frames=20,
        loops=(1, 4),
        transparent=True,
        cover="still",
        sources=(Source("creator.line.me/en/guideline/animationsticker", "2026", "official"),),
    ),
    Platform(
        key="slack",
        name="Slack emoji",
        formats=("gif",),
        box=(128, 128),
        max_bytes=128_000,
        aim_bytes=128_000,
        max_frames=50,
        still=True,
        sources=(Source("guides to custom emoji", "2026", "third party"),),
    ),
    Platform(
        key="wechat",
        name="WeChat sticker",
        formats=("gif",),
        canvases=((240, 240),),
        max_bytes=500_000,
        aim_bytes=500_000,
        min_frames=2,
        sources=(Source("guides to WeChat's sticker albums", "2023-2026", "third party"),),
    ),
    Platform(
        key="signal",
        name="Signal sticker",
        formats=("apng",),
        box=(512, 512),
        min_long_side=10,
        square=True,
        max_bytes=300 * 1024,
        aim_bytes=300_000,
        max_seconds=3,  # third party; the desktop program does not look
        palette=False,  # Signal for iOS shows such files as stills
        still=True,
        sources=(
            Source("github.com/signalapp/Signal-Desktop, sticker creator", "2022", "official"),
            Source("github.com/signalapp/Signal-iOS issues 4611 and 5320", "2026", "official"),
            Source("signalstickers.org", "2026", "third party"),
        ),
    ),
    Platform(
        key="imessage",
        name="iMessage sticker",
        formats=("apng", "gif"),
        canvases=((408, 408), (618, 618), (300, 300)),
        max_bytes=500_000,
        aim_bytes=500_000,
        still=True,
        sources=(Source("developer.apple.com/documentation/messages/mssticker", "2026", "official"),),
    ),
    Platform(
        key="twitch",
        name="Twitch animated emote",
        formats=("gif",),
        canvases=((112, 112),),
        max_bytes=512_000,  # of each of three sizes; a single file that Twitch resizes may have 1 MB
        aim_bytes=512_000,
        min_frames=2,
        max_frames=60,
        max_flashes=3,
        cover="still",
        sources=(Source("docs.elgato.com/en/graphics/emotes", "2026", "third party"),),
    ),
    Platform(
        key="kakaotalk",
        name="KakaoTalk emoticon",
        formats=("gif", "webp"),
        canvases=((360, 360),),
        max_bytes=2_000_000,
        aim_bytes=2_000_000,
        max_seconds=5,
        min_frames=2,
        max_frames=24,
        sources=(Source("guides to KakaoTalk emoticons", "2026", "third party"),),
    ),
)

PLATFORMS: Mapping[str, Platform] = MappingProxyType({record.key: record for record in _RECORDS})
"""The platforms by key, in the order of this file."""


def find_platform(platform: str | Platform) -> Platform:
    """The record that a key stands for; a record stands for itself.

    Raises:
        ValueError: if there is no such key.
    """
    if isinstance(platform, Platform):
        return platform
    if platform not in PLATFORMS:
        raise ValueError(f"`platform` must be one of {', '.join(PLATFORMS)}, not {platform!r}.")
    return PLATFORMS[platform]
