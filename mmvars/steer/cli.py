"""``mmvars steer``: build the model, bind the port, serve the page."""

import os
import socket
from collections.abc import Sequence
from importlib.util import find_spec

from mmvars.data import photos_root
from mmvars.errors import InputError
from mmvars.parsers.steer import parse_args

__all__ = ['main']


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    for package in ('starlette', 'uvicorn'):
        if find_spec(package) is None:
            raise InputError(f'the page needs {package}: pip install "mmvars[page]"')
    with _listen(args.host, args.port) as listener:
        _serve(args, listener)


def _listen(host: str, port: int) -> socket.socket:
    """Bind before the model is built, which takes seconds.

    Raises:
        InputError: If the address is none of this machine's, or the port is in use.
    """
    if host in ('0.0.0.0', '::', ''):
        raise InputError(
            f'--host {host!r} is no address that a browser can ask for: give the one address or '
            'name of this machine under which the page is to be reached'
        )
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(' (while ')[0]
        raise InputError(
            f'cannot listen on port {port} of {host!r} ({reason}): choose another with '
            '--port (0: any that is free) or --host'
        ) from error
    return listener


def _serve(args, listener: socket.socket) -> None:
    import uvicorn

    from mmvars.engine.options import parse_cfg_options
    from mmvars.predictor import Predictor
    from mmvars.steer.images import ImageFolder
    from mmvars.steer.server import LOCAL_HOSTS, Limits, make_app

    folder = ImageFolder(args.images or os.path.join(photos_root(), 'images'))
    predictor = Predictor(
        args.model,
        args.checkpoint,
        device=args.device,
        prototypes=args.prototypes,
        text=args.text,
        cfg_options=parse_cfg_options(args.cfg_options),
    )
    port = listener.getsockname()[1]
    app = make_app(
        predictor,
        folder,
        takes_text=args.text is not None,
        hosts=LOCAL_HOSTS | {args.host},
        cookie=f'mmvars_{port}',
        limits=Limits(side=args.side),
    )
    config = uvicorn.Config(
        app,
        lifespan='off',
        ws='none',
        proxy_headers=False,
        server_header=False,
        log_level='warning',
        timeout_graceful_shutdown=1,
    )
    host = f'[{args.host}]' if ':' in args.host else args.host
    print(f'http://{host}:{port}/  (Ctrl-C ends it)', flush=True)
    uvicorn.Server(config).run(sockets=[listener])
