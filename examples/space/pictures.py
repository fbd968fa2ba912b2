"""A field for a picture or animation, whose file nobody opens before the package's own reader."""

from pathlib import Path

import gradio as gr
from gradio.data_classes import ImageData
from gradio.utils import get_upload_folder


class PictureFile(gr.Image):
    """`gr.Image` whose value is the path of the file as it was uploaded; `jobs.read` is the first to look inside."""

    is_template = True  # to the browser it is a `gr.Image`

    def preprocess(self, payload: ImageData | None) -> str | None:
        """The path, which lies in Gradio's cache.

        Gradio itself looks at the paths of what a call marks as files, and a crafted call need not mark any.

        Raises:
            gr.Error: if the path leads elsewhere, or the picture is written into the call.
        """
        if payload is None:
            return None
        cache = Path(get_upload_folder()).resolve()
        if payload.path is None or not Path(payload.path).resolve().is_relative_to(cache):
            raise gr.Error("This is no uploaded file.", print_exception=False)
        return payload.path
