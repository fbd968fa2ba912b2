"""Every layout of a data set gives the same rows, and what is wrong with one is named."""

import gzip
import io
import json
import tarfile

import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Picture

from rdtf_diffusers.data.animation import AnimationError
from rdtf_diffusers.data.rows import (
    check_captions,
    check_files,
    fingerprint_rows,
    iterate_animations,
    load_rows,
    read_row,
)


CAPTIONS = ["a red square", "a square moving"]
LENGTHS = [1, 3]


def picture_bytes(format, *colours):
    """A still, or an animation of several colours."""
    first, *rest = [Picture.new("RGBA", (8, 8), colour) for colour in colours]
    stream = io.BytesIO()
    first.save(stream, format, **({"save_all": True, "append_images": rest, "duration": 100} if rest else {}))
    return stream.getvalue()


FILES = {"still.png": picture_bytes("PNG", "red"), "moving.gif": picture_bytes("GIF", "red", "lime", "blue")}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The two stickers, without metadata."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "stickers"
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return folder


def metadata(*columns):
    return [dict(zip(columns, values)) for values in zip(FILES, CAPTIONS, strict=True)]


def write_lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def add_members(file, members):
    with tarfile.open(file, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def jsonl(folder):
    write_lines(folder / "metadata.jsonl", metadata("file_name", "text"))
    return folder


def jsonl_of_a_split(folder):
    folder.rename(folder.with_name("train"))
    jsonl(folder.with_name("train"))
    return folder.parent


def csv(folder):
    lines = [",".join(row.values()) for row in metadata("file_name", "text")]
    (folder / "metadata.csv").write_text("\n".join(["file_name,text", *lines]), encoding="utf-8")
    return folder


def parquet_metadata(folder):
    Dataset.from_list(metadata("file_name", "text")).to_parquet(folder / "metadata.parquet")
    return folder


def vsd2m(folder):
    rows = [
        row | {"keyframe_idx": [0, 2], "ocr": "HELLO", "md5": "x", "eng_cap": [row["eng_cap"], "another"]}
        for row in metadata("visual_path", "eng_cap")
    ]
    write_lines(folder / "vsd2m.jsonl", rows)
    return folder / "vsd2m.jsonl"


def sidecars(folder):
    for name, caption in zip(FILES, CAPTIONS):
        (folder / name).with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
    return folder


def tars(folder):
    still, moving = FILES.items()
    add_members(folder / "0.tar", [(f"x/{still[0]}", still[1]), ("x/still.txt", CAPTIONS[0].encode())])
    caption = json.dumps({"caption": CAPTIONS[1]}).encode()
    rest = [("README", b"not a sticker"), ("._moving.gif", b"what macOS leaves")]
    add_members(folder / "1.tar", [("moving.json", caption), moving, *rest])
    for name in FILES:
        (folder / name).unlink()
    return folder


def hub(folder, features=None):
    columns = {
        "animation": [{"bytes": data, "path": name} for name, data in FILES.items()],
        "caption": CAPTIONS,
        "other": [1, 2],
    }
    features = Features({"animation": Image(), "caption": Value("string"), "other": Value("int64")})
    target = folder.parent / "parquet"
    target.mkdir()
    Dataset.from_dict(columns, features=features).to_parquet(target / "train-0.parquet")
    return target


LAYOUTS = [jsonl, jsonl_of_a_split, csv, parquet_metadata, vsd2m, sidecars, tars, hub]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_rows(folder, layout, streaming):
    rows = sorted(load_rows(layout(folder), streaming=streaming), key=lambda row: row["text"])
    assert [row["text"] for row in rows] == CAPTIONS
    animations = list(iterate_animations(rows))
    assert [len(animation.frames) for animation in animations] == LENGTHS
    assert animations[1].durations.tolist() == [100] * 3
    assert animations[0].source.endswith("still.png")


def test_optional_columns_are_kept(folder):
    rows = load_rows(vsd2m(folder))
    assert rows[0]["keyframes"] == [0, 2] and rows[0]["ocr"] == "HELLO"
    assert set(load_rows(sidecars(folder), streaming=False)[0]) == {"image", "text"}


def test_columns_can_be_chosen(folder):
    assert load_rows(jsonl(folder), caption_column="file_name")[0]["text"] == "still.png"
    target = hub(folder)
    assert load_rows(target, caption_column="caption", image_column="animation")[0]["text"] == CAPTIONS[0]
    with pytest.raises(ValueError, match="no column `video`; the columns are animation, caption, other"):
        load_rows(target, image_column="video")
    with pytest.raises(ValueError, match="no column `text`; the columns are animation, caption, other"):
        load_rows(target, caption_column="text")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_list_of_captions_gives_its_first(folder, streaming):
    columns = {"image": [{"bytes": data, "path": name} for name, data in FILES.items()], "text": [["a", "b"], []]}
    features = Features({"image": Image(), "text": List(Value("string"))})
    Dataset.from_dict(columns, features=features).to_parquet(folder.parent / "lists" / "train-0.parquet")
    assert [row["text"] for row in load_rows(folder.parent / "lists", streaming=streaming)] == ["a", ""]


def test_a_sticker_without_caption_has_an_empty_one(folder):
    assert [row["text"] for row in load_rows(folder)] == ["", ""]


def test_bad_files_are_named(folder, caplog):
    add_members(folder / "0.tar", [("cat.gif", b"GIF89a"), ("cat.txt", b"a cat")])
    (row,) = load_rows(folder / "0.tar")
    with pytest.raises(AnimationError, match=r"0\.tar/cat\.gif: "):
        read_row(row)
    (folder / "still.png").write_bytes(b"broken")
    assert len(list(iterate_animations(load_rows(jsonl(folder))))) == 1
    assert "still.png: " in caplog.text


def test_a_tar_keeps_files_whose_names_differ_in_their_endings_alone(tmp_path):
    files = {
        "cat.gif": picture_bytes("GIF", "red", "blue"),
        "cat.png": picture_bytes("PNG", "red"),
        "cat.txt": b"a cat",
    }
    add_members(tmp_path / "0.tar", files.items())
    rows = load_rows(tmp_path / "0.tar")
    assert list(rows["text"]) == ["a cat"] * 2 and [len(read_row(row).frames) for row in rows] == [2, 1]


def test_wrong_data_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no column `prompt`; the columns are file_name, text"):
        load_rows(jsonl(folder), caption_column="prompt")
    with pytest.raises(ValueError, match=r"nowhere: neither a folder with metadata\.jsonl or stickers"):
        load_rows(tmp_path / "nowhere")
    lines = folder / "metadata.jsonl"
    for text, message in (
        ('{"file_name": "still.png", "text": "a"}\n{"text": "b"}\n', r"line 2: not an object with `file_name`"),
        ('{"file_name": "still.png", "text": "a"}\nx\n', r"line 2: not JSON"),
        ('{"file_name": "still.png", "text": 7}\n', r"line 1: the caption must be text, got 7"),
        ("\n", "the data set has no rows"),
    ):
        lines.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_rows(folder)
    for data in (None, b"no tar at all" * 100, gzip.compress(FILES["still.png"])):
        if data is not None:
            (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises(ValueError, match=r"x\.tar: not an uncompressed tar file"):
            load_rows(tmp_path / "x.tar")
    add_members(tmp_path / "x.tar", [("a.gif", FILES["moving.gif"]), ("a.json", b"[1]")])
    with pytest.raises(ValueError, match=r"x\.tar/a\.json: not an object"):
        load_rows(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("metadata.jsonl", '{"file_name": 5, "text": "a"}', r"line 1: not an object with `file_name`"),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "a", "keyframes": 3}',
            r"line 1: `keyframes` must be a list",
        ),
        ("metadata.jsonl", b'{"file_name": "a.png", "text": "caf\xe9"}', r"metadata\.jsonl: not UTF-8"),
        ("metadata.csv", 'file_name,text,keyframes\na.png,a,"[0, x]"', r"row 1: `keyframes` must be a list"),
        ("metadata.csv", "", r"metadata\.csv: "),
        ("metadata.parquet", "no Parquet", r"metadata\.parquet"),
    ],
)
def test_broken_metadata_is_named(folder, name, data, message):
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(ValueError, match=message):
        load_rows(folder)


def test_metadata_of_other_systems(folder):
    line = json.dumps({"file_name": "still.png", "text": "a\u2028b"}, ensure_ascii=False)
    (folder / "metadata.jsonl").write_text(line + "\r\n", encoding="utf-8-sig")
    assert load_rows(folder)["text"] == ["a\u2028b"]
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text('file_name,text,keyframes\nstill.png,12,"[0, 3]"\n', encoding="utf-8-sig")
    (row,) = load_rows(folder)
    assert row["text"] == "12" and row["keyframes"] == [0, 3]


def test_names_in_tars_and_folders(folder, tmp_path):
    members = [
        ("a/my.cat.GIF", FILES["moving.gif"]),
        ("a/my.cat.TXT", b"a cat"),
        ("b/my.cat.gif", FILES["moving.gif"]),
    ]
    add_members(tmp_path / "names.tar", members)
    assert sorted(load_rows(tmp_path / "names.tar")["text"]) == ["", "a cat"]
    (folder / "__MACOSX").mkdir()
    for place in (folder, folder / "__MACOSX"):
        (place / "._still.png").write_bytes(b"what macOS leaves")
    assert len(load_rows(folder)) == 2
    add_members(folder / "0.tar", members)
    with pytest.raises(ValueError, match="stickers in tar files and beside them"):
        load_rows(folder)


def test_captions_further_down_are_pointed_at(folder):
    jsonl_of_a_split(folder)
    (folder.parent / "train").rename(folder.parent / "held-out")
    with pytest.raises(ValueError, match=r"the captions are further down; give .*held-out"):
        load_rows(folder.parent)


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_without_caption_or_file(folder, streaming, caplog):
    files = [None, {"bytes": FILES["still.png"], "path": None}]
    features = Features({"image": Image(), "text": Value("string")})
    Dataset.from_dict({"image": files, "text": ["a", None]}, features=features).to_parquet(folder / "p" / "0.parquet")
    rows = list(load_rows(folder / "p", streaming=streaming))
    assert [row["text"] for row in rows] == ["a", ""]
    assert len(list(iterate_animations(rows))) == 1 and "has no file" in caplog.text
    columns = {"image": [[None]], "text": ["a"]}
    features = Features({"image": List(Image()), "text": Value("string")})
    Dataset.from_dict(columns, features=features).to_parquet(folder / "lists" / "0.parquet")
    with pytest.raises(ValueError, match="`image` holds several files a row"):
        load_rows(folder / "lists", streaming=streaming)


def test_fingerprints_tell_captions_names_and_keyframes_apart(folder):
    seen = {fingerprint_rows(load_rows(jsonl(folder))), fingerprint_rows(load_rows(hub(folder)))}
    assert len(seen) == 1  # files are told by their names
    lines = metadata("file_name", "text")
    write_lines(folder / "metadata.jsonl", [lines[0] | {"text": "another"}, lines[1]])
    seen |= {fingerprint_rows(load_rows(folder))}
    write_lines(folder / "metadata.jsonl", [lines[0] | {"keyframes": [0]}, lines[1]])
    assert len(seen | {fingerprint_rows(load_rows(folder))}) == 3


def test_configurations_and_caches_of_the_hub(folder):
    target = hub(folder)
    load_rows(target, caption_column="caption").select([1]).to_parquet(target / "other-0.parquet")
    kinds = "".join(f"- config_name: {name}\n  data_files: {name}-*.parquet\n" for name in ("train", "other"))
    (target / "README.md").write_text(f"---\nconfigs:\n{kinds}---\n")
    (row,) = load_rows(target, config_name="other", cache_dir=folder.parent / "elsewhere")
    assert row["text"] == CAPTIONS[1] and (folder.parent / "elsewhere").is_dir()
    with pytest.raises(ValueError, match="nothing"):
        load_rows(target, config_name="nothing")
    with pytest.raises(ValueError, match="local files have no configurations; leave out `config_name` 'other'"):
        load_rows(folder, config_name="other", cache_dir=folder.parent / "unused")
    assert not (folder.parent / "unused").exists()


def test_data_without_a_caption_or_without_a_file_is_refused(folder):
    without = load_rows(folder).data.column("text")
    captioned = load_rows(jsonl(folder))
    check_captions([without, captioned.data.column("text")])
    with pytest.raises(ValueError, match=r"No sticker has a caption; .* --caption_column"):
        check_captions([without, without])
    (folder / "still.png").write_bytes(b"broken")
    check_files(captioned)
    (folder / "moving.gif").unlink()
    with pytest.raises(
        ValueError, match=r"No file .* can be read, 2 were tried; the last: .*moving\.gif: No such file"
    ):
        check_files(captioned)
