"""Names of Python's C interface as functions and data that stand for nothing: python_names.py INCLUDE_DIR OUT.c

llguidance's library is also a Python module, and the system's loader wants every name that it mentions, although no
Python runs in a worker. Who calls one of them ends the process, which says so.
"""

import re
import sys
from pathlib import Path

include, out = Path(sys.argv[1]), Path(sys.argv[2])
text = "".join(path.read_text(errors="replace") for path in sorted(include.rglob("*.h")))
functions = sorted(set(re.findall(r"PyAPI_FUNC\((?:[^()]|\([^()]*\))*\)\s*(_?Py\w+)\s*\(", text)))
data = sorted(set(re.findall(r"PyAPI_DATA\([^()]*\)\s*(_?Py\w+)\s*[;\[]", text)) - set(functions))
assert len(functions) > 500 and len(data) > 50, (len(functions), len(data))
lines = [
    "/* Made by cmake/python_names.py. */",
    '#define PGL_SHOWN __attribute__((visibility("default")))',
    "extern void pgl_no_python(void);",
    *(f"PGL_SHOWN void {name}(void) {{ pgl_no_python(); }}" for name in functions),
    *(f"PGL_SHOWN long long {name}[64];" for name in data),
]
out.write_text("\n".join(lines) + "\n")
