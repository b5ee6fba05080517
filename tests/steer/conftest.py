import io
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('starlette')
pytest.importorskip('mmengine')

sys.path.insert(0, str(Path(__file__).parent))

from fake_predictor import FakePredictor  # noqa: E402

from mmvars.steer.images import ImageFolder  # noqa: E402
from mmvars.steer.server import Limits, make_app  # noqa: E402


def picture(color=(10, 200, 90), size=(48, 32)) -> Image.Image:
    """Of one color, but for noise, so that no two pixels must be equal."""
    noise = np.random.default_rng(0).integers(0, 8, (size[1], size[0], 3))
    return Image.fromarray((noise + color).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = 'PNG', **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with two images, links out of it, and a secret beside it."""
    secret = tmp_path / 'secret.png'
    secret.write_bytes(encoded(picture((255, 0, 0))))
    folder = tmp_path / 'images'
    (folder / 'more').mkdir(parents=True)
    (folder / 'a b.png').write_bytes(encoded(picture()))
    (folder / 'more' / 'c.jpg').write_bytes(encoded(picture((200, 10, 10)), 'JPEG'))
    (folder / 'link.png').symlink_to(secret)
    (folder / 'out').symlink_to(tmp_path)
    return folder


@pytest.fixture
def app(images):
    limits = Limits(upload=300_000, json=20_000, seconds=1, sessions=8)
    return make_app(FakePredictor(), ImageFolder(str(images)), takes_text=True, limits=limits)


@pytest.fixture
def address(app):
    """``(host, port)`` of a real server, for what a test client does not do."""
    import uvicorn

    with socket.create_server(('127.0.0.1', 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, lifespan='off', ws='none', log_level='error'))
        thread = threading.Thread(target=server.run, kwargs={'sockets': [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listener.getsockname()
        server.should_exit = True
        thread.join()
