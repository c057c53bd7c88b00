"""One port for probes and Prometheus: /livez (the loop makes progress), /readyz (it can do its work), /metrics."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from stream_worker.telemetry import Metrics

__all__ = ["HealthServer"]

# a probe returns the reasons why not; an empty list is health
Probe = Callable[[], list[str]]


class HealthServer:
    """Serves on (host, port); `port` is the real one once started, also where 0 was asked for."""

    def __init__(self, host: str, port: int, metrics: Metrics, live: Probe, ready: Probe) -> None:
        self.host, self.port = host, port
        self._metrics, self._live, self._ready = metrics, live, ready
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Bind. Raises OSError when the port is taken."""
        app = web.Application()
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._exposition)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port)
        await site.start()
        self.port = int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Close the port."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _livez(self, _: web.Request) -> web.Response:
        return _answer(self._live())

    async def _readyz(self, _: web.Request) -> web.Response:
        return _answer(self._ready())

    async def _exposition(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


def _answer(why_not: list[str]) -> web.Response:
    return web.Response(text="\n".join(why_not) + "\n" if why_not else "ok\n", status=503 if why_not else 200)
