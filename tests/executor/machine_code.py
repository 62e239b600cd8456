"""Reads the kernels of a compiled fatbin: registers, stack, and the instructions that touch memory."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

WIDTHS = {"8": 1, "16": 2, "64": 8, "128": 16, "256": 32}
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T0-9]+\s+)?([A-Z][\w.]*)")
FLOAT64 = re.compile(r"^(D(ADD|MUL|FMA|SETP|MNMX)\b|MUFU\.\w*64H|(F2F|F2I|I2F)\b.*F64)")


@dataclasses.dataclass
class Kernel:
    architecture: int
    name: str  # demangled, without its arguments: climb_step_apply<float, float, Absent, 4>
    registers: int
    stack: int  # bytes
    local: int  # bytes
    opcodes: list[str]

    def widths(self, operation: str) -> list[int]:
        """Bytes a thread moves by each LDG (global load), STG (global store), ..."""
        found = []
        for opcode in self.opcodes:
            name, *flags = opcode.split(".")
            if name == operation:
                found.append(next((WIDTHS[f.lstrip("US")] for f in flags if f.lstrip("US") in WIDTHS), 4))
        return found

    def float64_opcodes(self) -> list[str]:
        return [opcode for opcode in self.opcodes if FLOAT64.match(opcode)]


def find_tool(name: str) -> str | None:
    """cuobjdump or nvdisasm: triton's wheel holds both."""
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name
        if path.exists():
            return str(path)
    return shutil.which(name)


def _output(*command: str, given: str | None = None) -> str:
    return subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout


def _short(demangled: str) -> str:
    """void advcam::cuda::(anonymous namespace)::k<(int)4>(float*) -> k<4>"""
    name = re.sub(r"\(anonymous namespace\)::|advcam::cuda::|^void |\((?:int|bool)\)", "", demangled)
    return name[: name.rindex("(")] if name.endswith(")") else name


def read_kernels(fatbin: Path, cuobjdump: str) -> list[Kernel]:
    usage: dict[tuple[int, str], tuple[int, int, int]] = {}
    architecture, function = 0, ""
    for line in _output(cuobjdump, "--dump-resource-usage", str(fatbin)).splitlines():
        if found := re.search(r"arch = sm_(\d+)", line):
            architecture = int(found[1])
        elif found := re.match(r"\s*Function (\S+):", line):
            function = found[1]
        elif found := re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", line):
            usage[architecture, function] = (int(found[1]), int(found[2]), int(found[3]))
    opcodes: dict[tuple[int, str], list[str]] = {key: [] for key in usage}
    for line in _output(cuobjdump, "-sass", str(fatbin)).splitlines():
        if found := re.search(r"arch = sm_(\d+)", line):
            architecture = int(found[1])
        elif found := re.search(r"Function : (\S+)", line):
            function = found[1]
        elif found := INSTRUCTION.match(line):
            opcodes[architecture, function].append(found[1])
    names = _output("c++filt", given="\n".join(name for _, name in usage)).splitlines()
    return [
        Kernel(key[0], _short(name), *usage[key], opcodes=opcodes[key]) for key, name in zip(usage, names, strict=True)
    ]
