"""`rdtf-diffusers check-data`: what a data set holds."""

import argparse

from ..utils.files import write_whole


def check_data(args: argparse.Namespace) -> int:
    """Reads every file of a data set and prints what was found; 1 if there are files that cannot be read."""
    try:
        from huggingface_hub import logging

        from ..data.report import check
        from ..data.rows import load_rows

        logging.set_verbosity_error()
        rows = load_rows(args.data, args.caption_column, args.image_column, args.split)
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; it comes with pip install 'rdtf_diffusers[train]'") from error
    if args.limit is not None:
        rows = rows.select(range(min(args.limit, len(rows))))
    report = check(args.data, rows, workers=args.workers)
    files = {args.json: report.json, args.html: report.html}
    contents = {path: render(rows) for path, render in files.items() if path is not None}  # all, before any is written
    for path, content in contents.items():
        write_whole(path, content.encode())
    print(report.text())
    return 1 if report.bad else 0
