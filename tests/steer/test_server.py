"""The page's server: what it answers, whose image it answers for, and what it refuses."""

import base64
import io
import json
import zlib

import numpy as np
import pytest
from conftest import encoded, picture
from fake_predictor import FakePredictor
from PIL import Image
from starlette.testclient import TestClient

from mmvars.errors import InputError
from mmvars.steer.images import ImageFolder
from mmvars.steer.server import Limits, make_app

HOST = 'http://localhost:8765'


@pytest.fixture
def new_client(app):
    """Makes clients, each another person."""
    return lambda: TestClient(app, base_url=HOST, raise_server_exceptions=False)


@pytest.fixture
def client(new_client) -> TestClient:
    return new_client()


def choose(client, name='a b.png') -> dict:
    answer = client.post('/api/image', json={'name': name})
    assert answer.status_code == 200, answer.text
    return answer.json()


def upload(client, content: bytes, **headers):
    headers.setdefault('Content-Type', 'application/octet-stream')
    return client.post('/api/upload', content=content, headers=headers)


def refused(answer, status: int, words: str) -> None:
    assert answer.status_code == status, (answer.request.content[:200], answer.text)
    assert words in answer.json()['error']
    assert 'Traceback' not in answer.text


def decoded(url: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(url.partition(',')[2]))).convert('RGB'))


def test_an_image_and_a_prompt(client) -> None:
    model = client.get('/api/model').json()
    assert model['images'] == ['a b.png', 'more/c.jpg']
    assert model['classes'][1] == {'name': 'dog', 'color': '#c87828'}
    image = choose(client)
    assert (image['width'], image['height'], image['original']) == (48, 32, [48, 32])
    assert image['plain']['alpha'] == 2
    assert image['plain']['vector'] is None
    assert set(image['plain']['views']) == {'bottom_up', 'attention', 'labels'}
    prior = {'points': [[5, 5], [40, 20]], 'labels': [1, 0]}
    result = client.post('/api/predict', json={'image': image['image'], 'prior': prior, 'alpha': 3})
    assert result.status_code == 200
    answer = result.json()
    assert answer['alpha'] == 3
    assert len(answer['vector']) == 3
    assert sum(row['share'] for row in answer['classes']) == pytest.approx(1)
    assert sum(row['shift'] for row in answer['classes']) == pytest.approx(0, abs=1e-6)
    views = {name: decoded(view['url']) for name, view in answer['views'].items()}
    assert list(views) == [
        *('bottom_up', 'token_weights', 'heatmap', 'attention', 'labels', 'shift'),
    ]
    assert {view.shape for view in views.values()} == {(32, 48, 3)}
    assert views['token_weights'][5, 5].sum() > views['token_weights'][20, 40].sum()
    assert {tuple(color) for color in views['labels'].reshape(-1, 3)} <= set(
        map(tuple, FakePredictor.palette)
    )


@pytest.mark.parametrize(
    'prior', [{'class': 2}, {'box': [3, 4, 20, 30.5]}, {'text': ' a dog '}, {'vector': [1, 0, 0.5]}]
)
def test_every_kind_of_prompt(client, prior) -> None:
    image = choose(client)['image']
    answer = client.post('/api/predict', json={'image': image, 'prior': prior}).json()
    assert max(row['shift'] for row in answer['classes']) > 0.01


def test_uploads_are_upright_and_scaled(images) -> None:
    limits = Limits(side=100)
    app = make_app(FakePredictor(), ImageFolder(str(images)), limits=limits)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    content = encoded(picture(size=(400, 200)), 'JPEG', exif=exif)
    answer = upload(TestClient(app, base_url=HOST), content).json()
    assert (answer['width'], answer['height'], answer['original']) == (50, 100, [200, 400])


def test_people_do_not_see_each_other(new_client) -> None:
    one, two = new_client(), new_client()
    first, second = choose(one), choose(two, 'more/c.jpg')
    ask = {'prior': {'class': 1}}
    vectors = [
        client.post('/api/predict', json={'image': image['image'], **ask}).json()['vector']
        for client, image in ((one, first), (two, second), (one, first))
    ]
    assert vectors[0] == vectors[2] != vectors[1]
    refused(two.post('/api/predict', json={'image': first['image'], **ask}), 409, 'another image')


def test_a_second_tab_is_told(client) -> None:
    first, _ = choose(client), choose(client, 'more/c.jpg')
    refused(client.post('/api/predict', json={'image': first['image']}), 409, 'another tab')


def test_the_one_idle_longest_goes_and_loses_nothing(new_client) -> None:
    clients = [new_client() for _ in range(9)]  # one more than the server keeps
    images = [choose(client)['image'] for client in clients[:8]]
    assert clients[0].post('/api/predict', json={'image': images[0]}).status_code == 200
    choose(clients[8])
    assert clients[0].post('/api/predict', json={'image': images[0]}).status_code == 200
    refused(clients[1].post('/api/predict', json={'image': images[1]}), 410, 'set it again')
    again = choose(clients[1])['image']
    assert clients[1].post('/api/predict', json={'image': again}).status_code == 200


def test_the_cookie_is_closed_and_not_the_clients_choice(client) -> None:
    client.cookies.set('mmvars', 'x' * 43)
    answer = client.post('/api/image', json={'name': 'a b.png'})
    cookie = answer.headers['set-cookie']
    assert 'HttpOnly' in cookie
    assert 'SameSite=strict' in cookie
    assert 'xxx' not in cookie


@pytest.mark.parametrize('steerable', [True, False])
def test_whether_it_can_be_steered_is_said(images, steerable) -> None:
    app = make_app(FakePredictor(steerable), ImageFolder(str(images)))
    client = TestClient(app, base_url=HOST)
    assert client.get('/api/model').json()['steerable'] is steerable
    views = choose(client)['plain']['views']
    assert views.keys() == ({'bottom_up', 'attention', 'labels'} if steerable else {'labels'})


# ------------------------------------------------------------------------------ hostile requests


PATHS = [
    '../secret.png',
    '%2e%2e/secret.png',
    '..%2fsecret.png',
    '%252e%252e%252fsecret.png',
    'more/../../secret.png',
    '/etc/passwd',
    '%2Fetc%2Fpasswd',
    'link.png',
    'out/secret.png',
    'a%20b.png%00',
    '..\\secret.png',
    'A B.png',
    'more',
]


def test_nothing_outside_of_the_folder(client, images) -> None:
    for path in PATHS:
        for url in (f'/api/thumbnail/{path}', f'/static/{path}', f'/static/../../{path}'):
            answer = client.get(url)
            assert answer.status_code in (403, 404), url
            assert 'error' in answer.json()
        for name in (path, str(images / path), str(images / 'a b.png')):
            refused(client.post('/api/image', json={'name': name}), 404, 'no image')


def test_a_link_that_appears_later(client, images) -> None:
    path = images / 'a b.png'
    path.unlink()
    path.symlink_to(images.parent / 'secret.png')
    refused(client.post('/api/image', json={'name': 'a b.png'}), 400, 'no longer')
    refused(client.get('/api/thumbnail/a%20b.png'), 400, 'no longer')


def test_a_folder_that_is_none(tmp_path) -> None:
    with pytest.raises(InputError, match="--images '.*nowhere' does not exist"):
        ImageFolder(str(tmp_path / 'nowhere'))


def test_a_folder_of_links_alone(tmp_path, images) -> None:
    folder = tmp_path / 'links'
    folder.mkdir()
    (folder / 'x.png').symlink_to(images / 'a b.png')
    with pytest.raises(InputError, match='lead out of it'):
        ImageFolder(str(folder))


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in 1 kB."""
    header = b'IHDR' + (60000).to_bytes(4, 'big') * 2 + bytes([8, 2, 0, 0, 0])
    data = b'IDAT' + zlib.compress(bytes(1000))
    chunks = [
        (len(chunk) - 4).to_bytes(4, 'big') + chunk + zlib.crc32(chunk).to_bytes(4, 'big')
        for chunk in (header, data, b'IEND')
    ]
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunks)


@pytest.mark.parametrize(
    'content, words',
    [
        (b'', 'cannot be decoded'),
        (b'GIF89a', 'cannot be decoded'),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'cannot be decoded'),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'PostScript'),
        (encoded(picture())[:-500], 'cannot be decoded'),
        (encoded(picture(), 'JPEG')[:-300], 'cannot be decoded'),
        (encoded(picture(), 'ICO'), 'save it as PNG'),
        (encoded(Image.new('I;16', (40, 40))), '8 bits'),
        (encoded(Image.new('1', (8000, 7000))), 'scale it down'),
        (encoded(Image.new('L', (4, 40))), 'smaller than a patch'),
        (bomb(), 'too large'),
        (bytes(300_001), 'more than 300,000 bytes'),
    ],
)
def test_images_that_are_none(client, content, words) -> None:
    image = choose(client)['image']
    refused(upload(client, content), 413 if 'bytes' in words else 400, words)
    answer = client.post('/api/predict', json={'image': image, 'prior': {'class': 1}})
    assert answer.status_code == 200  # the image before is still there


BODIES = [
    (b'{"image": ', 400),
    (b'\xff\xfe', 400),
    (b'[]', 400),
    (b'null', 400),
    (b'{}', 400),
    (b'[' * 15_000, 400),
    (b'{"image": "IMAGE", "alpha": NaN}', 400),
    (b'{"image": "IMAGE", "alpha": Infinity}', 400),
    (b'{"image": "IMAGE", "alpha": 1e999}', 400),
    (b'{"image": "IMAGE", "alpha": "2"}', 400),
    (b'{"image": "IMAGE", "alpha": -1}', 400),
    (b'{"image": "IMAGE", "alpha": true}', 400),
    (b'{"image": "IMAGE", "alpha": ' + b'9' * 5000 + b'}', 400),
    (b'{"image": "IMAGE", "alpha": ' + b'9' * 400 + b'}', 400),  # no float is as large
    (b'{"image": "IMAGE", "other": 1}', 400),
    (b'{"image": ["IMAGE"]}', 409),
    (b'{"image": null}', 409),
    (b'{"image": "IMAGE", "prior": ' + b' ' * 20_000 + b'null}', 413),
]


def test_broken_json(client) -> None:
    image, headers = choose(client)['image'], {'Content-Type': 'application/json'}
    for body, status in BODIES:
        body = body.replace(b'IMAGE', image.encode())
        refused(client.post('/api/predict', content=body, headers=headers), status, '')


NO_PROMPTS = [
    *('dog', 1, True, [], {}, [[1, 2]]),
    *({'class': value} for value in ('dog', True, 1.5, -1, 3, 10**14, None, [1])),
    *({'text': value} for value in ('', ' ', 'x' * 201, 3)),
    *({'box': value} for value in ([1, 2, 3], [1, 2, 1, 9], 'abcd', [None] * 4, [90, 0, 99, 9])),
    {'box': [0, 0, '9', 9]},
    {'points': [[1, 2]]},
    {'points': [], 'labels': []},
    {'points': [[1, 2]], 'labels': [0]},
    {'points': [[1, 2]], 'labels': [2]},
    {'points': [[1, 2]], 'labels': [1, 1]},
    {'points': [[1, 2], [3]], 'labels': [1, 1]},
    {'points': [[48, 2]], 'labels': [1]},
    {'points': [[-1, 2]], 'labels': [1]},
    {'points': [[1, None]], 'labels': [1]},
    {'points': [{'x': 1}], 'labels': [1]},
    {'points': [['a', 'b']], 'labels': [1]},
    {'points': [[[1, 2]]], 'labels': [1]},
    *({'vector': value} for value in ([], [1.0], [None] * 3, ['1'] * 3, [[1]] * 3)),
    {'class': 1, 'text': 'dog'},
    {'points': [[1, 2]], 'labels': [1], 'class': 1},
]


def test_prompts_that_are_none(client) -> None:
    image = choose(client)['image']
    for prior in NO_PROMPTS:
        refused(client.post('/api/predict', json={'image': image, 'prior': prior}), 400, '')


def test_prompts_of_nobody(client) -> None:
    refused(client.post('/api/predict', json={'image': 'x'}), 410, 'set it again')


@pytest.mark.parametrize(
    'headers, allowed',
    [
        ({}, True),
        ({'Host': 'localhost:8765'}, True),
        ({'Host': '127.0.0.1:8765'}, True),
        ({'Host': '[::1]:8765'}, True),
        ({'Host': 'evil.example'}, False),
        ({'Host': 'evil.example:8765'}, False),
        ({'Host': 'localhost.evil.example'}, False),
        ({'Host': 'evil@localhost'}, False),
        ({'Host': 'localhost:80@evil.example'}, False),
        ({'Host': '10.0.0.1'}, False),
        ({'Host': ''}, False),
    ],
)
def test_names_of_the_host(client, headers, allowed) -> None:
    for answer in (
        client.get('/', headers=headers),
        client.post('/api/image', json={'name': 'a b.png'}, headers=headers),
    ):
        assert answer.status_code == (200 if allowed else 403)
        if not allowed:
            assert answer.json()['error'].startswith('this page is not known as')
            assert 'set-cookie' not in answer.headers


@pytest.mark.parametrize(
    'headers, status',
    [
        ({'Origin': HOST}, 200),
        ({'Sec-Fetch-Site': 'same-origin'}, 200),
        ({'Origin': 'https://evil.example'}, 403),
        ({'Origin': 'http://localhost:9999'}, 403),
        ({'Origin': 'null'}, 403),
        ({'Origin': 'http://[x'}, 403),
        ({'Sec-Fetch-Site': 'cross-site'}, 403),
        ({'Sec-Fetch-Site': 'same-site'}, 403),
        ({'Content-Type': 'text/plain'}, 415),
        ({'Content-Type': 'application/x-www-form-urlencoded'}, 415),
    ],
)
def test_other_sites_cannot_post(client, headers, status) -> None:
    headers = {'Content-Type': 'application/json', **headers}
    body = json.dumps({'name': 'a b.png'})
    answer = client.post('/api/image', content=body, headers=headers)
    assert answer.status_code == status, answer.text


def test_every_answer_has_the_headers(client) -> None:
    for answer in (
        client.get('/'),
        client.get('/static/page.js'),
        client.get('/nothing'),
        client.post('/'),
        client.get('/', headers={'Host': 'evil.example'}),
    ):
        policy = answer.headers['content-security-policy']
        assert "default-src 'none'" in policy
        assert 'unsafe' not in policy
        assert answer.headers['x-content-type-options'] == 'nosniff'
        assert answer.headers['cross-origin-resource-policy'] == 'same-origin'
        assert 'access-control-allow-origin' not in answer.headers


def test_a_failure_is_said_and_its_details_are_not(images) -> None:
    class Broken(FakePredictor):
        def predict(self, prior=None, alpha=None):
            raise RuntimeError('/home/me/secret')

    app = make_app(Broken(), ImageFolder(str(images)))
    client = TestClient(app, base_url=HOST, raise_server_exceptions=False)
    answer = client.post('/api/image', json={'name': 'a b.png'})
    refused(answer, 500, 'the server failed')
    assert 'secret' not in answer.text
    assert 'content-security-policy' in answer.headers
