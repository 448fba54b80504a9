"""Programs for a process whose Vulkan devices have faults: `python faulty_device.py CASE ARGUMENTS` prints the JSON of
what the function CASE returns. The folder $PGL_FAULTS says which faults (vulkan_faults.c)."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from polargrid_local import Engine, PolarGridError

FAULTS = Path(os.environ["PGL_FAULTS"])


def fault(name: str, text: str = "") -> None:
    (FAULTS / name).write_text(text)


def limit_memory(mib: int) -> None:
    """Before the first engine: how much each device has."""
    fault("memory", str(mib << 20))


def about(error: PolarGridError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "details": error.details or {}}


def ask(engine: Engine, prompt: str = "the of and", **request: Any) -> str:
    request = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True, **request}
    return engine.completion(**request)["choices"][0]["text"]


def attempt(work: Any, *arguments: Any, **options: Any) -> Any:
    """What it returns, or what its error says."""
    try:
        return work(*arguments, **options)
    except PolarGridError as error:
        return about(error)


def placed(path: str, mib: str, options: str) -> Any:
    """Where a model comes to lie with so much memory on each device, and what it holds of it."""
    limit_memory(int(mib))
    try:
        with Engine(path, **json.loads(options)) as engine:
            info, [stats] = engine.info(), engine.stats().values()
            return {
                "n_gpu_layers": info["n_gpu_layers"],
                "placement": info["placement"],
                "n_ctx": info["n_ctx"],
                "held": stats["device_bytes"],
                "memory": engine.get_gpu_memory()["memory"],
                "text": ask(engine, max_tokens=2),
            }
    except PolarGridError as error:
        return about(error)


def lost(path: str, device: str) -> Any:
    """A device that is lost while one stream is read and another request waits; then more requests, and a new
    engine. In this process, which then knows of the loss: a new worker would not."""
    with Engine(path, device=device, n_ctx=512, max_streams=1, isolation="thread") as engine:
        before = engine.info()
        healthy = ask(engine)
        stream = engine.completion_stream(prompt="the of and", max_tokens=400, temperature=0, ignore_eos=True)
        next(stream)
        waiting: dict[str, Any] = {}
        waiter = threading.Thread(target=lambda: waiting.update(answer=attempt(ask, engine)))
        waiter.start()
        while not next(iter(engine.stats().values()))["n_waiting"]:
            pass
        fault("lost")
        broken = attempt(lambda: [chunk["choices"][0]["text"] for chunk in stream])
        waiter.join()
        return {
            "before": before["placement"],
            "healthy": healthy,
            "broken": broken,
            "waiting": waiting["answer"],
            "after": attempt(ask, engine),
            "info": attempt(lambda: engine.info()["placement"]),
            "row_invariant": attempt(lambda: engine.info()["row_invariant"]),
            "embedding": attempt(embed, engine),
            "another": attempt(_another, path, device),
            "gpus": engine.get_gpu_status()["total_gpus"],
        }


def _another(path: str, device: str) -> str:
    with Engine(path, device=device, n_ctx=512, isolation="thread") as engine:
        return engine.info()["placement"]


def embed(engine: Engine, n_times: int = 1) -> int:
    """The width of an embedding."""
    return len(engine.embeddings(input="the of and " * n_times)["data"][0]["embedding"])


def lost_in_embeddings(path: str) -> Any:
    with Engine(path, device="auto", n_ctx=512) as engine:
        before = embed(engine)
        fault("lost")
        broken, after = attempt(embed, engine), attempt(embed, engine)
        return {"before": before, "broken": broken, "after": after, "text": attempt(ask, engine)}


def full_while_loading(path: str) -> Any:
    """No memory left for a model whose plan fitted; then there is again."""
    with Engine(path, device="gpu", n_ctx=512) as engine:
        fault("full")
        error = attempt(_another, path, "gpu")
        (FAULTS / "full").unlink()
        return {"error": error, "then": attempt(_another, path, "gpu"), "first": attempt(ask, engine)}


def full_mid_answer(path: str) -> Any:
    """Memory that runs out between two requests, for one whose buffers must grow."""
    with Engine(path, device="gpu", n_ctx=2048, max_streams=2) as engine:
        healthy = ask(engine)
        fault("full")
        error = attempt(embed, engine, 200)
        meanwhile = attempt(ask, engine)
        broken = attempt(ask, engine, "the of and " * 400)
        (FAULTS / "full").unlink()
        embedding = attempt(embed, engine, 200)
        return {
            "healthy": healthy,
            "embedding, full": error,
            "answer, full": meanwhile,
            "long answer, full": broken,
            "answer": ask(engine),
            "embedding": embedding,
        }


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
