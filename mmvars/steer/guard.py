"""What is true of every answer of the page, whatever was asked."""

import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ['Guard', 'host_name']

HEADERS = {
    'Content-Security-Policy': (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Referrer-Policy': 'no-referrer',
    'X-Content-Type-Options': 'nosniff',
    'X-Frame-Options': 'DENY',
}


class Guard:
    """Refuses what another web site makes a browser ask, and adds headers to every answer.

    Another site can let its own name point to this machine (DNS rebinding): then the Host header
    names that site. Or it can send a request from its own page: then Origin names it.

    Args:
        app: The application behind it.
        hosts: Names and addresses under which the page may be asked for, without ports.
    """

    def __init__(self, app: ASGIApp, hosts: set[str]) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] == 'lifespan':
            await self.app(scope, receive, send)
        if scope['type'] != 'http':
            return  # which closes a web socket

        async def send_with_headers(message: Message) -> None:
            if message['type'] == 'http.response.start':
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault('Cache-Control', 'no-store')
            await send(message)

        app: ASGIApp = self.app
        if refusal := self._refusal(Headers(scope=scope), scope['method']):
            app = JSONResponse({'error': refusal}, status_code=403)
        await app(scope, receive, send_with_headers)

    def _refusal(self, headers: Headers, method: str) -> str | None:
        host = headers.get('host', '')
        if len(headers.getlist('host')) != 1 or host_name(host) not in self.hosts:
            return f'this page is not known as {host!r}, but as {", ".join(sorted(self.hosts))}'
        if method in ('GET', 'HEAD'):
            return None
        origin = headers.get('origin')
        if origin is not None and _netloc(origin) != host.lower():
            return f'requests from pages of {origin!r} are not answered'
        if origin is None and headers.get('sec-fetch-site', 'none') not in ('none', 'same-origin'):
            return 'requests from pages of other sites are not answered'
        return None


def host_name(host: str) -> str:
    """``localhost`` of ``localhost:8000``, ``::1`` of ``[::1]:8000``; ``''`` of what is no host."""
    match = re.fullmatch(r'(?:\[([\da-f:.]+)\]|([\w.-]+))(?::\d*)?', host.lower())
    return (match[1] or match[2]) if match else ''


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ''
