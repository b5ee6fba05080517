"""The server of the page: images, prompts and answers, for several people at once.

Everybody has a clone of the predictor, found by a cookie, so that nobody prompts another one's
image. The model works in one thread, one request after the other, and images are decoded in two
others, so that the event loop answers meanwhile.
"""

import json
import secrets
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.resources import files
from typing import Any, BinaryIO, TypeVar

import anyio
import numpy as np
from anyio import CapacityLimiter
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from mmvars.errors import InputError, check_number
from mmvars.pictures import encoded
from mmvars.prompts import Box, Points
from mmvars.steer.guard import Guard
from mmvars.steer.images import THUMBNAIL, ImageFolder, decode_image
from mmvars.steer.views import class_rows, picture_url, views

__all__ = ['LOCAL_HOSTS', 'Limits', 'make_app']

LOCAL_HOSTS = {'localhost', '127.0.0.1', '::1'}
GONE = 'your image is no longer in memory, since others used the page: set it again'
Result = TypeVar('Result')


@dataclass(frozen=True)
class Limits:
    """What one server takes.

    Attributes:
        upload: Bytes of an image.
        json: Bytes of any other request.
        seconds: For a request to arrive.
        sessions: People whose images are kept; the one who was idle longest goes first.
        waiting: Requests that wait for the model; more are refused.
        side: Pixels of the longer side of an image; larger ones are scaled down.
    """

    upload: int = 25_000_000
    json: int = 250_000
    seconds: float = 30
    sessions: int = 32
    waiting: int = 200
    side: int = 1024


@dataclass(eq=False)
class Session:
    """One person's predictor, and the number of the image that it holds."""

    predictor: Any
    key: str = field(default_factory=partial(secrets.token_urlsafe, 32))
    image: str = ''


def make_app(
    predictor: Any,
    folder: ImageFolder,
    *,
    takes_text: bool = False,
    hosts: set[str] = LOCAL_HOSTS,
    cookie: str = 'mmvars',
    limits: Limits | None = None,
) -> Guard:
    """The page as an ASGI application.

    Args:
        predictor: An :class:`mmvars.Predictor`.
        folder: The images to choose from.
        takes_text: Whether the predictor has a map from text.
        hosts: Names and addresses under which it may be asked for.
        cookie: Name of the cookie of a session: browsers do not tell ports apart.
        limits: What it takes.
    """
    page = _Page(predictor, folder, takes_text, cookie, limits or Limits())
    static = files('mmvars.steer') / 'static'
    app = Starlette(
        routes=[
            Route('/', lambda request: FileResponse(str(static / 'index.html'))),
            Mount('/static', StaticFiles(directory=str(static))),
            Route('/api/model', page.describe),
            Route('/api/thumbnail/{name:path}', page.thumbnail),
            Route('/api/image', page.choose, methods=['POST']),
            Route('/api/upload', page.upload, methods=['POST']),
            Route('/api/predict', page.predict, methods=['POST']),
        ],
        exception_handlers={
            HTTPException: lambda request, error: _refusal(error.detail, error.status_code),
            InputError: lambda request, error: _refusal(str(error), 400),
            Exception: lambda request, error: _refusal('the server failed, see its log', 500),
        },
    )
    return Guard(app, hosts)


class _Page:
    """The answers, and what they share."""

    def __init__(
        self, predictor: Any, folder: ImageFolder, takes_text: bool, cookie: str, limits: Limits
    ) -> None:
        self.predictor = predictor
        self.folder = folder
        self.takes_text = takes_text
        self.cookie = cookie
        self.limits = limits
        self.sessions: OrderedDict[str, Session] = OrderedDict()
        self.model_thread = CapacityLimiter(1)
        self.image_threads = CapacityLimiter(2)
        self._thumbnail = lru_cache(maxsize=1000)(self._make_thumbnail)

    async def describe(self, request: Request) -> Response:
        """What the page must know before there is an image."""
        priors = self.predictor.prior_classes if self.predictor.is_steerable else {}
        colors = ['#{:02x}{:02x}{:02x}'.format(*color) for color in self.predictor.palette]
        return JSONResponse(
            dict(
                classes=[
                    dict(name=name, color=color)
                    for name, color in zip(self.predictor.classes, colors, strict=True)
                ],
                steerable=self.predictor.is_steerable,
                scales_without_prior=self.predictor.scales_without_prior,
                priors=[dict(number=i, name=name) for i, name in priors.items()],
                text=self.takes_text,
                images=self.folder.names,
                max_upload=self.limits.upload,
            )
        )

    async def thumbnail(self, request: Request) -> Response:
        """A small JPEG of an image of the folder."""
        name = self._known(request.path_params['name'])
        content = await self._in_image_thread(self._thumbnail, name)
        # Marked private: images are nobody else's business, proxies' neither.
        return Response(content, 200, {'Cache-Control': 'private, max-age=600'}, 'image/jpeg')

    async def choose(self, request: Request) -> Response:
        """Take an image of the folder, ``{"name": ...}``."""
        data = await self._json(request)
        if set(data) != {'name'}:
            raise HTTPException(400, 'send {"name": NAME}')
        name = self._known(data['name'])
        image, original = await self._in_image_thread(self._decode, name)
        return await self._set_image(request, image, original)

    async def upload(self, request: Request) -> Response:
        """Take the image that is the body."""
        _check_type(request, 'application/octet-stream')
        with tempfile.SpooledTemporaryFile(max_size=1_000_000) as file:
            await self._read(request, file, self.limits.upload)
            file.seek(0)
            decode = partial(decode_image, file, 'the upload', self.limits.side)
            image, original = await self._in_image_thread(decode)
        return await self._set_image(request, image, original)

    async def predict(self, request: Request) -> Response:
        """Answer a prompt, ``{"image": NUMBER, "prior": ..., "alpha": NUMBER | null}``.

        The prior is ``null``, or one of ``{"class": NUMBER}``, ``{"text": WORDS}``,
        ``{"points": [[x, y], ...], "labels": [1, 0, ...]}``, ``{"box": [x0, y0, x1, y1]}``,
        ``{"vector": [...]}``.
        """
        data = await self._json(request)
        if not data.keys() <= {'image', 'prior', 'alpha'} or 'image' not in data:
            raise HTTPException(400, 'send {"image": ..., "prior": ..., "alpha": ...}')
        prior, alpha = _parse_prior(data.get('prior')), data.get('alpha')
        session = self._session(request)
        if session is None:
            raise HTTPException(410, GONE)
        answer = partial(self._answer, session, data['image'], prior, alpha)
        return JSONResponse(await self._in_model_thread(answer))

    def _session(self, request: Request) -> Session | None:
        session = self.sessions.get(request.cookies.get(self.cookie, ''))
        if session is not None:
            self.sessions.move_to_end(session.key)
        return session

    async def _set_image(
        self, request: Request, image: Image.Image, original: tuple[int, int]
    ) -> Response:
        session = self._session(request) or Session(self.predictor.clone())

        def work() -> dict:
            session.predictor.set_image(image)
            session.image = secrets.token_urlsafe(8)
            picture = session.predictor.image
            return dict(
                image=session.image,
                width=picture.shape[1],
                height=picture.shape[0],
                original=original,
                picture=picture_url(picture),
                plain=self._answer(session, session.image, None, None),
            )

        response = JSONResponse(await self._in_model_thread(work))
        self.sessions[session.key] = session  # anew, if it was evicted meanwhile
        self.sessions.move_to_end(session.key)
        while len(self.sessions) > self.limits.sessions:
            self.sessions.popitem(last=False)
        response.set_cookie(self.cookie, session.key, httponly=True, samesite='strict')
        return response

    def _answer(self, session: Session, image: Any, prior: Any, alpha: Any) -> dict:
        if image != session.image:
            raise HTTPException(409, 'another image was set since, perhaps in another tab')
        prediction = session.predictor.predict(prior, alpha)
        vector = prediction.prior
        return dict(
            alpha=prediction.alpha,
            vector=None if vector is None else [round(float(value), 6) for value in vector],
            classes=class_rows(prediction),
            views=views(prediction, session.predictor.palette),
        )

    def _known(self, name: Any) -> str:
        if not isinstance(name, str) or name not in self.folder:
            raise HTTPException(404, f'there is no image {str(name):.80} in the folder')
        return name

    def _decode(self, name: str, side: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
        with self.folder.open(name) as file:
            return decode_image(file, name, side or self.limits.side)

    def _make_thumbnail(self, name: str) -> bytes:
        return encoded(self._decode(name, THUMBNAIL)[0], 'JPEG', quality=80)

    async def _in_model_thread(self, work: Callable[[], Result]) -> Result:
        if self.model_thread.statistics().tasks_waiting >= self.limits.waiting:
            raise HTTPException(503, 'too many requests wait for the model: try again soon')
        return await anyio.to_thread.run_sync(work, limiter=self.model_thread)

    async def _in_image_thread(self, work: Callable[..., Result], *args: Any) -> Result:
        return await anyio.to_thread.run_sync(work, *args, limiter=self.image_threads)

    async def _json(self, request: Request) -> dict:
        _check_type(request, 'application/json')
        with tempfile.SpooledTemporaryFile() as file:
            await self._read(request, file, self.limits.json)
            file.seek(0)
            content = file.read()
        try:
            data = json.loads(content, parse_constant=_refuse_constant, parse_int=_whole_number)
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, f'the request is no JSON: {error}') from error
        if not isinstance(data, dict):
            raise HTTPException(400, 'the request must be a JSON object')
        return data

    async def _read(self, request: Request, file: BinaryIO | Any, limit: int) -> None:
        """Write the body to a file, piece by piece, until it is too large or too slow."""
        size = 0
        try:
            with anyio.fail_after(self.limits.seconds):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > limit:
                        raise HTTPException(413, f'more than {limit:,} bytes are not taken')
                    file.write(chunk)
        except TimeoutError as error:
            raise HTTPException(408, 'the request took too long to arrive') from error


def _parse_prior(data: Any) -> Any:
    """What the predictor takes, of the JSON that :meth:`_Page.predict` describes.

    Types are checked here, values by the predictor.
    """
    match data:
        case None:
            return None
        case {'class': int(number)} if len(data) == 1 and not isinstance(number, bool):
            return number
        case {'text': str(words)} if len(data) == 1 and 0 < len(words.strip()) <= 200:
            return words.strip()
        case {'points': list(points), 'labels': list(labels)} if len(data) == 2:
            return Points(points, labels)
        case {'box': [x0, y0, x1, y1]} if len(data) == 1:
            return Box(x0, y0, x1, y1)
        case {'vector': list(vector)} if len(data) == 1:
            for value in vector:
                check_number('the numbers of a vector', value)
            return np.array(vector, dtype=np.float32)
    raise HTTPException(
        400,
        'prior must be null, {"class": NUMBER}, {"text": WORDS}, {"points": [[x, y], ...], '
        '"labels": [1, 0, ...]}, {"box": [x0, y0, x1, y1]} or {"vector": [...]}',
    )


def _check_type(request: Request, kind: str) -> None:
    """A type that other sites cannot send without asking this server first, which it denies."""
    if request.headers.get('content-type', '').partition(';')[0].strip() != kind:
        raise HTTPException(415, f'the Content-Type of this request must be {kind}')


def _refuse_constant(word: str) -> None:
    raise ValueError(f'{word} is not a number of JSON')


def _whole_number(digits: str) -> int:
    if len(digits) > 15:
        raise ValueError(f'{digits[:15]}... is too large')
    return int(digits)


def _refusal(message: str, status: int) -> Response:
    return JSONResponse({'error': message}, status_code=status)
