"""Requests that no well-behaved client sends, over real sockets."""

import http.client
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import encoded, picture

pytest.importorskip('uvicorn')


def sent(address, head: str, body: bytes = b'') -> socket.socket:
    connection = socket.create_connection(address, timeout=5)
    lines = [*head.splitlines(), f'Host: localhost:{address[1]}', '', '']
    connection.sendall('\r\n'.join(lines).encode() + body)
    return connection


def status(connection: socket.socket) -> int:
    return int(connection.recv(4096).split()[1])


def test_fifty_people_at_once(address) -> None:
    """More than are kept: those are told, and set their image again."""

    def person(number: int) -> tuple[list[int], float]:
        client = http.client.HTTPConnection(*address, timeout=20)
        color, codes, cookie = (4 * number, 255 - 4 * number, 90), [], ''
        while codes[-1:] != [200]:
            headers = {'Content-Type': 'application/octet-stream', 'Cookie': cookie}
            client.request('POST', '/api/upload', encoded(picture(color, (12, 9))), headers)
            answer = client.getresponse()
            cookie = (answer.getheader('Set-Cookie') or cookie).partition(';')[0]
            ask = {'image': json.load(answer)['image'], 'prior': {'class': 0}}
            headers = {'Content-Type': 'application/json', 'Cookie': cookie}
            client.request('POST', '/api/predict', json.dumps(ask), headers)
            answer = client.getresponse()
            codes.append(answer.status)
            result = json.load(answer)
        client.close()
        return codes, np.abs(np.subtract(result['vector'], color)).max()

    with ThreadPoolExecutor(50) as pool:
        codes, differences = zip(*pool.map(person, range(50)), strict=True)
    assert {code for each in codes for code in each} <= {200, 410}
    assert max(differences) < 8  # the noise of their own image


def test_a_gigabyte_is_refused_before_it_arrives(address) -> None:
    head = 'POST /api/upload HTTP/1.1\nContent-Type: application/octet-stream\n'
    for size in ('Content-Length: 1000000000', 'Transfer-Encoding: chunked'):
        chunked = 'chunked' in size
        piece = bytes(65536)
        if chunked:
            piece = b'10000\r\n' + piece + b'\r\n'
        connection, taken = sent(address, head + size), 0
        connection.settimeout(0.02)
        answer = b''
        while not answer and taken < 1e9:
            try:
                connection.sendall(piece)
                taken += len(piece)
                answer = connection.recv(4096)
            except TimeoutError:
                pass
            except OSError:
                break
        assert answer.split()[1] == b'413'
        assert taken < 5e6


def test_those_who_wait_with_half_a_request_keep_nobody(address) -> None:
    """Bodies that do not come are given up after the time allowed; others are served meanwhile."""
    head = 'POST /api/image HTTP/1.1\nContent-Type: application/json\nContent-Length: 99'
    slow = [sent(address, head, b'{"name"') for _ in range(30)]
    slow += [sent(address, 'GET /api/mod') for _ in range(30)]
    start = time.monotonic()
    client = http.client.HTTPConnection(*address, timeout=5)
    client.request(
        'POST', '/api/image', json.dumps({'name': 'a b.png'}), {'Content-Type': 'application/json'}
    )
    assert client.getresponse().status == 200
    assert time.monotonic() - start < 0.8  # less than the second that the slow ones have
    assert status(slow[0]) == 408
    for connection in slow:
        connection.close()


@pytest.mark.parametrize(
    'head',
    [
        'GET / HTTP/1.1\nHost: localhost',  # and the one that is sent anyway: two
        'GARBAGE',
        'GET http://evil.example/ HTTP/1.1\nX: ' + 'x' * 100_000,
    ],
)
def test_broken_heads(address, head) -> None:
    assert status(sent(address, head)) in (400, 403, 404, 431)
    assert status(sent(address, 'GET /api/model HTTP/1.1')) == 200


def test_paths_as_they_are(address) -> None:
    for path in (
        '/../../etc/passwd',
        '/static/../../cli.py',
        '//etc/passwd',
        '/static//etc/passwd',
    ):
        assert status(sent(address, f'GET {path} HTTP/1.1')) in (403, 404)
