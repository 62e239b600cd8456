"""Everything there is to learn on a machine with a GPU, in one command of under 8 minutes.

    python benchmarks/gpu.py [--out benchmarks/results/gpu.json] [--minutes 8] [--no-build]

Builds the CUDA kernels into this environment, checks every kernel on the device against the float64 reference on the
CPU, times kernels and climb, and runs compute-sanitizer. Every part runs in a process of its own with a time limit;
the JSON is written after each. Exit code 0: all is right; 1: something is wrong or was out of time; 2: no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
KEPT = 4000  # characters of a part's output
Result = dict[str, Any]


class OutOfTimeError(Exception):
    pass


@dataclass(frozen=True)
class Run:
    """What the parts share."""

    device: str
    quick: bool
    build: bool
    deadline: float

    def call(self, command: list[str], limit: float, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Runs a command at the project's root: (exit code, the end of its output). Ends it, children too, in time."""
        settings = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=settings, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(1.0, min(limit, self.deadline - time.monotonic())))
            late = process.poll() is None
            if late:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            output.seek(0)
            text = output.read().replace(str(ROOT), ".")[-KEPT:]
        if late:
            raise OutOfTimeError(text)
        return process.returncode, text

    def script(
        self, name: str, *arguments: str, limit: float, under: tuple[str, ...] = (), **environment: str
    ) -> tuple[int, str]:
        """`call` for a script of this folder; `under`: the command that runs it."""
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [*under, sys.executable, str(HERE / name), *arguments]
        return self.call(command, limit, {"PYTHONPATH": paths, **environment})


@dataclass(frozen=True)
class Part:
    """work: adds what it finds to the result it is given, and raises RuntimeError where something is wrong."""

    name: str
    work: Callable[[Run, Result], None]


class SkippedError(Exception):
    pass


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    return shutil.which(name) or next(
        (str(path) for home in homes if home and (path := Path(home) / "bin" / name).is_file()), None
    )


def facts(run: Run, result: Result) -> None:
    """In a child: a context held here could shut the others out."""
    code, text = run.script("device_clock.py", run.device, limit=60)
    if code:
        raise RuntimeError(text)
    result |= json.loads(text.splitlines()[-1]) | {"quick": run.quick}
    query = ["--query-gpu=name,driver_version,clocks.max.sm,clocks.max.memory,power.limit", "--format=csv"]
    for name, arguments in (("nvidia-smi", query), ("nvcc", ["--version"])):
        program = tool(name)
        result[name] = "absent" if program is None else run.call([program, *arguments], 20)[1]


def build(run: Run, result: Result) -> None:
    """Builds the extension in place by the first way that works; a red part, unless --no-build, where none does."""
    if run.build:
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--editable", "."]
        ways = {
            "pip without isolation": [*pip, "--no-build-isolation"],
            "pip with isolation": pip,
            "setup.py in place": [sys.executable, "setup.py", "build_ext", "--inplace"],
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        for way, command in ways.items():
            code, text = run.call(command, 200, {"ADVCAM_CUDA": "ON", "PATH": path})
            result["attempts"] = {**result.get("attempts", {}), way: "built" if code == 0 else text}
            if code == 0:
                break
    code, text = run.call(
        [sys.executable, "-c", f"from advcam_fast.ops.backend import backend_of; print(backend_of({run.device!r}))"], 60
    )
    result["kernels"] = text.strip().splitlines()[-1] if text.strip() else ""
    if code or (run.build and result["kernels"] != "native"):
        raise RuntimeError(f"the compiled kernels are not in use: {text}")


def pytest_part(folder: str, environment: Mapping[str, str], *options: str) -> Callable[[Run, Result], None]:
    def work(run: Run, result: Result) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            report = Path(scratch) / "report.xml"
            command = [sys.executable, "-m", "pytest", folder, "--tb=short", f"--junitxml={report}", *options]
            code, text = run.call(command, 150, {"ADVCAM_DEVICE": run.device, "PYTEST_ADDOPTS": "", **environment})
            cases = list(ElementTree.parse(report).iter("testcase")) if report.is_file() else []
        bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
        skipped = sum(case.find("skipped") is not None for case in cases)
        result |= {"tests": len(cases), "failed": [case.get("name") for case in bad], "skipped": skipped}
        if code or skipped or not cases:
            raise RuntimeError(text)

    return work


def timings(name: str) -> Callable[[Run, Result], None]:
    def work(run: Run, result: Result) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            rows = Path(scratch) / "rows.json"
            quick = ["--quick"] if run.quick else []
            try:
                code, text = run.script("gpu_timings.py", name, str(rows), run.device, *quick, limit=130)
            finally:
                result["rows"] = json.loads(rows.read_text()) if rows.is_file() else []
        if code:
            raise RuntimeError(text)

    return work


def sanitizer(check: str) -> Callable[[Run, Result], None]:
    def work(run: Run, result: Result) -> None:
        program = tool("compute-sanitizer")
        if run.device != "cuda" or program is None:
            raise SkippedError("no compute-sanitizer here" if program is None else "not on a GPU")
        command = [program, "--tool", check, "--error-exitcode", "99"]
        if check == "memcheck":
            command += ["--report-api-errors", "no"]  # torch probes: it expects some of its calls to fail
        code, text = run.script(
            "sanitizer_case.py",
            run.device,
            limit=90,
            under=tuple(command),
            PYTORCH_NO_CUDA_MEMORY_CACHING="1",  # every tensor is then an allocation, with an end
        )
        result["output"] = text
        if "Device not supported" in text:
            raise SkippedError("compute-sanitizer does not support this device or its sandbox")
        if code:
            raise RuntimeError(f"compute-sanitizer --tool {check} ended with {code}")

    return work


def cases_alone(run: Run, result: Result) -> None:
    """A sanitizer's report says nothing where its cases fail by themselves."""
    code, result["output"] = run.script("sanitizer_case.py", run.device, limit=60)
    if code:
        raise RuntimeError(result["output"])


def parts(run: Run) -> list[Part]:
    triton = ({}, ()) if run.device == "cuda" else ({"TRITON_INTERPRET": "1"}, ("-k", "guarded_triton"))
    return [
        Part("facts", facts),
        Part("build", build),
        Part("kernels on the device", pytest_part("tests/bench/device", {})),
        Part("triton kernels on the device", pytest_part("tests/triton/kernels", triton[0], *triton[1])),
        Part("kernel timings", timings("kernels")),
        Part("climb timings", timings("climb")),
        Part("cases of the sanitizer", cases_alone),
        *(Part(check, sanitizer(check)) for check in ("memcheck", "racecheck", "synccheck", "initcheck")),
    ]


def carried_out(part: Part, run: Run) -> Result:
    """A part's result: status is green, red, skipped or out of time."""
    result: Result = {"status": "green"}
    began = time.monotonic()
    try:
        if began >= run.deadline:
            raise OutOfTimeError("no time was left to start it")
        part.work(run, result)
    except SkippedError as reason:
        result |= {"status": "skipped", "reason": str(reason)}
    except OutOfTimeError as late:
        result |= {"status": "out of time", "reason": str(late)}
    except RuntimeError as wrong:
        result |= {"status": "red", "reason": str(wrong)}
    except Exception:
        result |= {"status": "red", "reason": traceback.format_exc().replace(str(ROOT), ".")}
    return result | {"seconds": round(time.monotonic() - began, 1)}


def tables(results: Mapping[str, Result]) -> Iterator[str]:
    sys.path.insert(0, str(ROOT))
    from advcam_fast.bench.table import duration, markdown

    yield markdown(["part", "status", "seconds"], [[n, r["status"], str(r["seconds"])] for n, r in results.items()])

    def cell(row: Result, key: str) -> str:
        if key in row:
            return duration(row[key])
        return "out of memory" if "out_of_memory" in row else "error" if "error" in row else ""

    lines = []
    for row in results.get("kernel timings", {}).get("rows", []):
        share = f"{row['share_of_bound']:.0%}" if "share_of_bound" in row else ""
        bound = duration(row["bound_seconds"]) if "bound_seconds" in row else ""
        name = f"{row['stem']}, {row['case']}, {row['pairs']} pairs"
        lines.append([name, row["implementation"], cell(row, "seconds"), cell(row, "call_seconds"), bound, share])
    heads = ["kernel", "implementation", "on the device", "a call", "data-sheet bound", "of the bound"]
    yield markdown(heads, lines)

    lines = []
    for row in results.get("climb timings", {}).get("rows", []):
        memory = f"{row['peak_bytes'] / 2**30:.2f} GiB" if "peak_bytes" in row else ""
        many = f"{row['pairs']} pairs" if "pairs" in row else f"{row['images']} images"
        speed = f"{row['images_per_second']:.3g} images/s" if "images_per_second" in row else ""
        lines.append([f"{row['implementation']}, {row['dtype']}, {many}", cell(row, "seconds_per_step"), speed, memory])
    yield markdown(["climb", "a step of a pair", "whole images", "peak memory"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu.json")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything; parts beyond are not started")
    parser.add_argument("--no-build", action="store_true", help="use what is installed")
    parser.add_argument("--only", action="append", metavar="PART", help="this part alone; may be given again")
    parser.add_argument("--dry-run", action="store_true", help="only name the parts")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: only to try this command")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only to try this command")
    options = parser.parse_args()
    build_it = not options.no_build and options.device == "cuda"
    run = Run(options.device, options.quick, build_it, time.monotonic() + 60 * options.minutes)
    names = [part.name for part in parts(run)]
    if strange := set(options.only or ()) - set(names):
        parser.error(f"--only {', '.join(sorted(strange))}: the parts are {', '.join(names)}")
    chosen = [part for part in parts(run) if not options.only or part.name in options.only]
    if options.dry_run:
        print("\n".join(part.name for part in chosen))
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"no GPU: torch {torch.__version__} (CUDA {torch.version.cuda}) finds none", file=sys.stderr)
        raise SystemExit(2)
    results: dict[str, Result] = {}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for part in chosen:
        print(f"{part.name} ...", flush=True)
        result = results[part.name] = carried_out(part, run)
        print(f"{part.name}: {result['status']}, {result['seconds']} s", flush=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print()
    for table in tables(results):
        print(table, end="\n\n")
    print(f"written: {options.out}")
    raise SystemExit(any(result["status"] in ("red", "out of time") for result in results.values()))


if __name__ == "__main__":
    main()
