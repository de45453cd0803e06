"""METEOR and SPICE: the two caption metrics that run on Java, from pycocoevalcap's own archives.

pycocoevalcap's classes start the same programs, but its METEOR waits for ever on a lock once Java has failed, and its
SPICE downloads by itself, writes into site-packages, and breaks on Java 17. So the programs are run from here, with a
time limit, and whatever is missing costs one warning and one metric, never the end of a run.
"""

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from subprocess import PIPE

from distcap.ngrams import tokenize
from distcap.types import UserError

# What pycocoevalcap leaves out of spice/lib, as Maven coordinates (group:artifact:version:packaging[:classifier]):
# the parser and its models, and a JavaScript engine, with its parts, for the single line of it with which SPICE formats
# its answer. Java had one of its own up to version 14.
SPICE_JARS = (
    "edu.stanford.nlp:stanford-corenlp:3.6.0:jar",
    "edu.stanford.nlp:stanford-corenlp:3.6.0:jar:models",
    "org.openjdk.nashorn:nashorn-core:15.4:jar",
    "org.ow2.asm:asm:9.6:jar",
    "org.ow2.asm:asm-analysis:9.6:jar",
    "org.ow2.asm:asm-commons:9.6:jar",
    "org.ow2.asm:asm-tree:9.6:jar",
    "org.ow2.asm:asm-util:9.6:jar",
)

# The packages whose private fields SPICE's cache serialises: closed since Java 16, each of them needed.
_OPENED = ("java.lang", "java.math", "java.net", "java.text", "java.util", "java.util.concurrent")


def missing(metric: str) -> str | None:
    """Why "meteor" or "spice" cannot be computed here, and what mends it; None if it can."""
    if shutil.which("java") is None:
        return "there is no `java` on the PATH; install a Java runtime, version 11 or newer"
    if metric == "spice" and (absent := _absent()):
        return f"{len(absent)} of its archives are not installed ({', '.join(absent)}); run `distcap prepare spice`"
    return None


def install_spice() -> Path:
    """Fetch with Maven what SPICE lacks, 390 MB in all, into pycocoevalcap's folder, and return that folder.

    Archives that are there already are left alone. Raises UserError without Maven, or when Maven fails.
    """
    lib = _folder("spice") / "lib"
    absent = _absent()
    if not absent:
        return lib
    if shutil.which("mvn") is None:
        raise UserError(
            "SPICE's archives are fetched with Maven, and there is no `mvn` on the PATH; install it (Debian and "
            f"Ubuntu: `apt install maven`), or put these into {lib} yourself: {', '.join(absent.values())}"
        )
    if not os.access(lib, os.W_OK):
        raise UserError(f"SPICE's archives belong into {lib}, which you may not write; use a virtual environment")
    for name, coordinates in absent.items():
        print(f"fetching {name}", flush=True)
        # Moved when complete, so that an interrupted copy is not taken for an archive.
        with tempfile.TemporaryDirectory(dir=lib) as folder:
            command = ["mvn", "-B", "-q", "dependency:copy", f"-Dartifact={coordinates}", f"-DoutputDirectory={folder}"]
            maven = subprocess.run(command, capture_output=True, text=True, cwd=folder)
            if maven.returncode != 0 or not (Path(folder) / name).exists():
                raise UserError(f"Maven could not fetch {coordinates}: {_reason(maven.stdout + maven.stderr)}")
            os.replace(Path(folder) / name, lib / name)
    return lib


@dataclass(frozen=True)
class JavaScore:
    """A metric of one system's captions, as shares of one (papers print them times 100)."""

    corpus: float
    """of the collection: SPICE's is the mean of its captions; METEOR's pools their statistics, and is not"""
    each: list[float]
    """of each caption, in their order"""


@dataclass(frozen=True)
class Texts:
    """One system's tokenised captions, and what they are compared with."""

    captions: Mapping[int, str]
    """image id -> caption"""
    references: Mapping[int, Sequence[str]]
    """image id -> its ground truth, of these images at least"""

    @classmethod
    def of(cls, captions: Mapping[int, str], references: Mapping[int, Sequence[str]]) -> "Texts":
        """Tokenise captions, and the references of their images."""
        return cls(
            {image: " ".join(tokenize(caption)) for image, caption in captions.items()},
            {image: [" ".join(tokenize(text)) for text in references[image]] for image in captions},
        )


def java_scores(texts: Texts) -> dict[str, JavaScore]:
    """The "meteor" and "spice" of one system; one that cannot be computed is left out.

    Warns once for each one left out, with the reason.
    """
    scores = {}
    for name, metric in METRICS.items():
        try:
            scores[name] = metric([texts])[0]
        except (UserError, OSError) as error:
            warnings.warn(f"{name.upper()} is left out: {error}", stacklevel=2)
    return scores


def meteor(systems: Sequence[Texts], limit: float = 900) -> list[JavaScore]:
    """METEOR 1.5 (Denkowski and Lavie 2014) of each system's captions, and of each caption alone.

    Raises UserError if Java is missing, fails, or needs more than `limit` seconds a system.
    """
    if reason := missing("meteor"):
        raise UserError(reason)
    limit *= len(systems)
    command = [*_java("2G"), "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            command, cwd=_folder("meteor"), stdin=PIPE, stdout=PIPE, stderr=errors, encoding="utf-8"
        )
        timer = threading.Timer(limit, process.kill)
        timer.start()

        def ask(*fields: str) -> str:
            print(*fields, sep=" ||| ", file=process.stdin, flush=True)
            return answer()

        def answer() -> str:
            assert process.stdout is not None
            return process.stdout.readline().strip()

        def score(texts: Texts) -> JavaScore:
            captions, references = texts.captions, texts.references
            statistics = [ask("SCORE", *map(_field, references[i]), _field(captions[i])) for i in captions]
            if not statistics:
                return JavaScore(0.0, [])
            # The answer is a line for each caption, this being the first, and then one for the collection.
            each = [ask("EVAL", *statistics), *(answer() for _ in statistics[1:])]
            return JavaScore(float(answer()), list(map(float, each)))

        try:
            return [score(texts) for texts in systems]
        except (OSError, ValueError):
            if time.monotonic() - start >= limit:
                raise UserError(f"Java did not end within {limit:g} s") from None
            process.kill()
            process.wait()
            errors.seek(0)
            raise UserError(f"Java failed: {_reason(errors.read())}") from None
        finally:
            timer.cancel()
            process.kill()
            process.communicate()  # closes the pipes


def spice(systems: Sequence[Texts], limit: float = 3600, cache: Path | None = None) -> list[JavaScore]:
    """SPICE 1.0 (Anderson et al. 2016) of each system: F-score of scene-graph tuples, and its mean over captions.

    Parsed captions are kept in `cache` (None: the user's cache folder), so that the second evaluation on the same
    references takes a fraction of the first. What several systems say of an image is scored once. Raises UserError if
    Java or an archive is missing, if Java fails, or needs more than `limit` seconds a system.
    """
    if reason := missing("spice"):
        raise UserError(reason)
    limit *= len(systems)
    asked = [[(t.captions[i], tuple(t.references[i])) for i in t.captions] for t in systems]
    # Numbered: SPICE's image ids need not be ours, and two systems differ on an image.
    numbers = {pair: number for number, pair in enumerate(dict.fromkeys(pair for pairs in asked for pair in pairs))}
    pairs = [{"image_id": number, "test": test, "refs": refs} for (test, refs), number in numbers.items()]
    # A variable and not arguments, because Java 8 stops at an argument it does not know.
    opened = " ".join(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED)
    environment = os.environ | {"JDK_JAVA_OPTIONS": f"{os.environ.get('JDK_JAVA_OPTIONS', '')} {opened}".strip()}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "captions.json", Path(folder) / "scores.json"
        source.write_text(json.dumps(pairs))
        classes = os.pathsep.join(("spice-1.0.jar", "lib/*"))
        command = [*_java("8G"), "-cp", classes, "edu.anu.spice.SpiceScorer", str(source), "-out", str(target)]
        command += ["-subset", "-silent", *_cache_arguments(cache)]
        try:
            java = subprocess.run(
                command,
                cwd=_folder("spice"),
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"Java did not end within {limit:g} s") from None
        if java.returncode != 0 or not target.exists():
            raise UserError(f"Java failed: {_reason(java.stdout + java.stderr)}")
        # A caption and references without a single tuple between them have no F-score.
        found = {image["image_id"]: float(image["scores"]["All"]["f"] or 0) for image in json.loads(target.read_text())}
    each = [[found[numbers[pair]] for pair in pairs] for pairs in asked]
    return [JavaScore(fmean(values) if values else 0.0, values) for values in each]


METRICS = {"meteor": meteor, "spice": spice}


def _java(heap: str) -> list[str]:
    return ["java", f"-Xmx{heap}", "-Dfile.encoding=UTF-8"]


def _folder(metric: str) -> Path:
    """Where pycocoevalcap keeps the archives of a metric."""
    spec = importlib.util.find_spec(f"pycocoevalcap.{metric}.{metric}")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _file_name(coordinates: str) -> str:
    """group:artifact:version:packaging[:classifier] -> the name Maven gives the file."""
    _, artifact, version, packaging, *classifier = coordinates.split(":")
    return "-".join((artifact, version, *classifier)) + f".{packaging}"


def _absent() -> dict[str, str]:
    """File name -> coordinates of the archives that SPICE lacks."""
    lib = _folder("spice") / "lib"
    return {_file_name(jar): jar for jar in SPICE_JARS if not (lib / _file_name(jar)).exists()}


def _field(caption: str) -> str:
    """A caption as METEOR's line protocol can carry it."""
    return caption.replace("|||", " ")


def _cache_arguments(folder: Path | None) -> list[str]:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return []  # its database is native code, shipped for these alone; SPICE then parses everything every time
    folder = folder or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "distcap" / "spice"
    folder.mkdir(parents=True, exist_ok=True)
    return ["-cache", str(folder)]


def _reason(output: str) -> str:
    """The line of a program's output that says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith("NOTE:")]
    told = [line for line in lines if "Error" in line or "Exception" in line or "ERROR" in line]
    return (told or lines or ["it said nothing"])[0]
