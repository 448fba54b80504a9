"""Native: llama.cpp and our engine as a whole under one sanitizer, built and driven.

python tests/soak/native.py thread|address|fuzz [--requests 300] [--seconds 900] [--model MODEL.gguf]

thread, address: tests/native/test_engine_threads.cpp, many threads on engines in this process and in one of their own,
under ThreadSanitizer, or under AddressSanitizer and UBSan. fuzz: tests/native/test_fuzz_tokenizer.cpp under libFuzzer
(Clang), AddressSanitizer and UBSan, with every vocabulary of the llama.cpp tree. The ordinary tests run both programs
too, for a second or two, with a llama.cpp that no sanitizer watches: to build it anew takes half an hour of two cores.
Exits with what the program said; what it found is on the standard error. A worker, whose standard error is closed, only
ends: with status 66 under ThreadSanitizer. Then let it keep its standard error, in csrc/worker/main.cpp, and look.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
# For all of llama.cpp; ours get the same and UBSan from PGL_SANITIZE.
FLAGS = {
    "thread": "-fsanitize=thread",
    "address": "-fsanitize=address,fuzzer-no-link",
    "fuzz": "-fsanitize=address,fuzzer-no-link",
}
SETTINGS = {
    "TSAN_OPTIONS": "halt_on_error=1:history_size=4",
    "ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def build(what: str, target: str) -> Path:
    folder = REPO / "build" / ("soak_thread" if what == "thread" else "soak_address")
    command = ["cmake", "-S", str(REPO), "-B", str(folder), "-DPGL_NATIVE_TESTS=ON", "-DPGL_PYTHON=OFF"]
    command += [
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        f"-DCMAKE_C_FLAGS={FLAGS[what]}",
        f"-DCMAKE_CXX_FLAGS={FLAGS[what]}",
    ]
    for language in ("C", "CXX"):
        command.append(f"-DCMAKE_{language}_FLAGS_RELWITHDEBINFO=-O1 -g1 -DNDEBUG")
    # No sanitizer sees into a compiler's OpenMP: ggml's own threads do the same work.
    command += ["-DGGML_OPENMP=OFF", f"-DPGL_SANITIZE={'thread' if what == 'thread' else 'ON'}", "-DPGL_LIBFUZZER=ON"]
    if not (folder / "CMakeCache.txt").exists():
        command += ["-G", "Ninja"] if shutil.which("ninja") else []
        command += ["-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++"]
    subprocess.run(command, check=True)
    subprocess.run(["cmake", "--build", str(folder), "--target", target, "--parallel"], check=True)
    return folder / "tests" / "native" / target


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", choices=sorted(FLAGS))
    arguments.add_argument("--requests", type=int, default=300, help="of each engine, before it is closed")
    arguments.add_argument("--model", help="in place of a tiny one")
    arguments.add_argument("--seconds", type=int, default=900, help="of fuzzing")
    arguments.add_argument("--corpus", default="build/corpus_tokenizer", help="folder of inputs that fuzzing found")
    given = arguments.parse_args()
    if given.what == "fuzz":
        os.makedirs(given.corpus, exist_ok=True)
        program = [str(build("fuzz", "test_fuzz_tokenizer")), given.corpus, f"-max_total_time={given.seconds}"]
        program += ["-max_len=256", "-print_final_stats=1", f"-artifact_prefix={given.corpus}/", "-timeout=60"]
    else:
        program = [str(build(given.what, "test_engine_threads")), str(given.requests)]
        program += [given.model] if given.model else []
    environment = {**SETTINGS, "PGL_VOCABULARIES": "all", "GGML_NO_BACKTRACE": "1", **os.environ}
    return subprocess.run(program, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
