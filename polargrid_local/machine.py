"""What the machine has to say of itself, in the remote API's words: its GPUs, their memory, its health. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from polargrid_local.api.replies import (
    Device,
    GPUInfo,
    GPUMemoryResponse,
    GPUMemorySimple,
    GPUMemoryState,
    GPUStatusResponse,
    HealthResponse,
)


def health_reply(healthy: bool, version: str, now: datetime) -> HealthResponse:
    """`version`: of this package."""
    return {
        "status": "healthy" if healthy else "unhealthy",
        "node": "local",
        "runtime": "polargrid-local",
        "timestamp": now.isoformat(),
        "features": {"dynamic_loading": True, "huggingface_support": True},
        "backend": {
            "healthy": healthy,
            "info": {"name": "llama.cpp", "version": version, "extensions": []},
        },
    }


def gpu_status_reply(
    devices: Sequence[Device], held: Mapping[int, Mapping[str, int]], now: datetime
) -> GPUStatusResponse:
    """`devices`: as the native module lists them; those that are no GPUs are left out. `held`: bytes that our models
    hold of each, by the id of the process that computes and the name of the device; other processes are not known."""
    gpus = [
        _gpu(index, device, sum(of_process.get(device["name"], 0) for of_process in held.values()))
        for index, device in enumerate(device for device in devices if device.get("gpu"))
    ]
    ours = {pid: sum(of_process.values()) for pid, of_process in held.items()}
    return {
        "status": "success",
        "timestamp": now.isoformat(),
        "gpus": gpus,
        "processes": [
            {"pid": pid, "name": "polargrid-local", "memory_mb": n_bytes >> 20}
            for pid, n_bytes in ours.items()
            if n_bytes
        ],
        "total_gpus": len(gpus),
    }


def gpu_memory_reply(
    devices: Sequence[Device], held: Mapping[int, Mapping[str, int]], now: datetime
) -> GPUMemoryResponse:
    """The memory of each GPU among `devices`, in GiB."""
    memory: list[GPUMemorySimple] = [
        {
            "total_gb": gpu["memory"]["total_gb"],
            "used_gb": gpu["memory"]["used_gb"],
            "free_gb": gpu["memory"]["free_gb"],
            "percent_used": gpu["memory"]["percent_used"],
            "percent_free": round(100 - gpu["memory"]["percent_used"], 2),
        }
        for gpu in gpu_status_reply(devices, held, now)["gpus"]
    ]
    return {"status": "success", "timestamp": now.isoformat(), "memory": memory}


def gpu_memory_state(memory: Sequence[GPUMemorySimple]) -> GPUMemoryState:
    """The sums over all GPUs."""
    used, total = sum(gpu["used_gb"] for gpu in memory), sum(gpu["total_gb"] for gpu in memory)
    return {
        "used_gb": round(used, 2),
        "total_gb": round(total, 2),
        "percent_used": round(100 * used / total, 2) if total else 0.0,
    }


def _gpu(index: int, device: Device, held: int) -> GPUInfo:
    total = device["memory_bytes"]
    used = max(total - device["free_bytes"], min(held, total))  # some drivers say that all is free, whatever is held
    free = total - used
    percent = round(100 * used / total, 2) if total else 0.0
    return {
        "index": index,
        "name": device["description"] or device["name"],
        "memory": {
            "total_mb": total >> 20,
            "used_mb": used >> 20,
            "free_mb": free >> 20,
            "total_gb": round(total / 2**30, 2),
            "used_gb": round(used / 2**30, 2),
            "free_gb": round(free / 2**30, 2),
            "percent_used": percent,
        },
        # llama.cpp's backends report memory only, and the remote API has integers here: 0 stands for unknown.
        "utilization": {"gpu_percent": 0, "memory_percent": round(percent)},
        "temperature_c": 0,
    }
