"""The page: drop images, and see what two captioners say of them and which image each caption finds."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from distcap.demo.comparison import Comparison
from distcap.demo.results import respond
from distcap.types import UserError

INTRO = """<div class="intro"><h1>Which picture is it?</h1>
<p>Drop pictures that look alike. Two captioners say what is on each; then CLIP reads each caption alone, and picks the
picture that it fits best.</p></div>"""

HOST = "127.0.0.1"
"""This machine only; --share is the way out."""


def serve(run: str, mle: str | None, port: int | None, share: bool, trust: bool) -> None:
    """Open the page, and keep it open until Ctrl-C."""
    page = open_page(run, mle, port=port, share=share, trust=trust)
    print(f"Open {page.share_url or page.local_url} - Ctrl-C ends it.", flush=True)
    page.block_thread()


def open_page(
    run: str, mle: str | None = None, *, port: int | None = None, share: bool = False, trust: bool = False
) -> Any:
    """Serve the page in the background; a gradio Blocks, with `local_url` and `close()`.

    Raises:
        UserError: gradio is not installed, a run cannot be used, or the port is taken.
    """
    # Read when gradio is imported: without it, gradio reports to its makers that there is a page.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise UserError("the page needs gradio, which is not installed: pip install 'distcap[demo]'") from error

    comparison = Comparison.of_runs(run, mle, trust=trust)
    with gradio.Blocks(title=f"distcap: {Path(run).name}") as page:
        gradio.HTML(INTRO)
        uploads = gradio.File(file_count="multiple", type="filepath", label="Pictures", height=180)
        button = gradio.Button("Caption them", variant="primary")
        results = gradio.HTML()
        button.click(partial(respond, comparison), uploads, results)
    try:
        page.launch(
            server_name=HOST,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            max_file_size="32mb",
            footer_links=[],
            css_paths=Path(__file__).parent / "style.css",
            # Fonts of the system's: others would be fetched from somewhere.
            theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        )
    except OSError as error:
        raise UserError(f"the page cannot be opened ({error}); name another --port") from error
    return page
