"""The folder that `distcap export` writes."""

import logging
import shutil
import tempfile
from pathlib import Path

from distcap.export.card import write_card
from distcap.export.trained import TrainedRun
from distcap.metrics.signature import decoder_line
from distcap.types import UserError
from distcap.writable import require_writable

log = logging.getLogger(__name__)


def export_run(run: Path, output: Path | None = None, license: str | None = None, *, trust: bool = False) -> Path:
    """Write a run's captioner for programs that know transformers and nothing of distcap, with a model card.

    Args:
        run: folder of a run that trained a captioner.
        output: the folder to be written; by default RUN/export. It must not be there yet, or be empty.
        license: the captioner's, in the hub's words ("mit"); None leaves it out, for nobody but its owner knows it.
        trust: let the run's config name classes from outside distcap.models, which executes their code.

    Returns:
        The folder.

    Raises:
        UserError: the run has no trained captioner, transformers alone cannot use it, or the folder is in use.
    """
    output = run / "export" if output is None else output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is there already; delete it, or name another folder with --output")
    trained = TrainedRun.read(run)
    require_writable(output)
    if not trained.metrics:
        log.warning("%s has no metrics.json: the card says that nothing was measured; `distcap test` measures", run)
    captioner, decoder = trained.load(trust=trust)
    for split, signature in trained.signatures.items():
        if signature["decoder"] != decoder_line(decoder):
            log.warning(
                "the %s metrics of %s were measured on captions decoded otherwise; the card says so", split, run
            )
    output.parent.mkdir(parents=True, exist_ok=True)
    # Moved when complete, so that an interrupted export is not taken for one.
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        folder = Path(scratch) / output.name
        folder.mkdir()
        usage = captioner.export(folder, decoder)
        shutil.copy(run / "config.yaml", folder / "config.yaml")
        try:
            write_card(folder, trained, decoder, usage, captioner.task, license)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{run / 'config.yaml'} isn't as distcap writes it: no model card ({error!r})") from error
        folder.replace(output)
    return output
