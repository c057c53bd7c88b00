"""The probes over real HTTP: 200 when all is well, 503 with the reasons; a deprecated use of the server would be an error."""

from __future__ import annotations

import aiohttp

from stream_worker.health import HealthServer
from stream_worker.telemetry import Metrics


async def test_probes_and_metrics() -> None:
    why: dict[str, list[str]] = {"live": [], "ready": ["kafka does not answer", "no label bank yet"]}
    server = HealthServer("127.0.0.1", 0, Metrics(), lambda: why["live"], lambda: why["ready"])
    await server.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as client:

            async def get(path: str) -> tuple[int, str]:
                async with client.get(path) as answer:
                    return answer.status, await answer.text()

            assert await get("/livez") == (200, "ok\n")
            assert await get("/readyz") == (503, "kafka does not answer\nno label bank yet\n")
            why["live"], why["ready"] = ["stage read has not moved for 61 s"], []
            assert await get("/livez") == (503, "stage read has not moved for 61 s\n")
            assert await get("/readyz") == (200, "ok\n")
            status, text = await get("/metrics")
            assert (status, "ecg_shed_windows_total 0.0" in text) == (200, True)
    finally:
        await server.stop()
