"""The command, with a real network: from the arguments to the answer, and its end."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
import torch

from mmvars.cli import main

CONFIG = 'absvit-ti16_upernet_1xb8-400iter_mini-cityscapes-128x256'
STEERED = f"""_base_ = 'mmvars::{CONFIG}'
prior = dict(type='class_prototype', num_classes=19)
model = dict(type='mmvars.EncoderDecoder', backbone=dict(prior=prior))
"""


def test_arguments(capsys) -> None:
    for argv, words in (
        (['--port', '70000'], 'is no port'),
        (['--side', '5'], 'from 64 to 8192'),
        (['--host', '0.0.0.0'], 'no address that a browser can ask for'),
        (['--host', 'no such host'], 'cannot listen'),
        (['--host', '192.0.2.1'], "of '192.0.2.1' (Cannot assign requested address): choose"),
    ):
        try:
            assert main(['steer', CONFIG, *argv]) == 2
        except SystemExit as end:
            assert end.code == 2
        message = capsys.readouterr().err
        assert words in message
        assert message.count('\n') == 1


def test_a_port_in_use(capsys) -> None:
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(['steer', CONFIG, '--port', port]) == 2
    assert f'cannot listen on port {port}' in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_chain(tmp_path, repo) -> None:
    from mmengine.registry import MODELS

    from mmvars.visualization.model import read_config

    pytest.importorskip('uvicorn')
    config = tmp_path / 'steered.py'
    config.write_text(STEERED)
    model = MODELS.build(read_config(str(config)).model)
    with torch.no_grad():
        model.backbone.network.prior.prototypes.normal_()
        model.backbone.network.prior.prototypes[3] = 0  # a class that no image had
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'iter_1.pth')
    command = [sys.executable, '-m', 'mmvars.cli', 'steer', str(tmp_path), '--port', '0']
    server = subprocess.Popen(command, cwd=repo, stdout=subprocess.PIPE, text=True)
    try:
        for line in server.stdout:
            if line.startswith('http'):
                break
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        address = line.split()[0]

        def ask(path: str, data: dict | None = None) -> dict:
            body = None if data is None else json.dumps(data).encode()
            request = urllib.request.Request(
                address + path, body, {'Content-Type': 'application/json'}
            )
            return json.load(opener.open(request, timeout=60))

        about = ask('api/model')
        assert about['steerable']
        assert [prior['number'] for prior in about['priors']][:4] == [0, 1, 2, 4]
        image = ask('api/image', {'name': about['images'][0]})
        for prior in ({'class': 4}, {'points': [[5, 5]], 'labels': [1]}, {'box': [0, 0, 9, 9]}):
            question = {'image': image['image'], 'prior': prior, 'alpha': 3}
            answer = ask('api/predict', question)
            assert {'token_weights', 'labels', 'shift'} <= answer['views'].keys()
            again = ask('api/predict', question | {'prior': {'vector': answer['vector']}})
            assert again['classes'][0]['shift'] == pytest.approx(
                answer['classes'][0]['shift'], abs=1e-4
            )
        server.send_signal(signal.SIGINT)
        assert server.wait(20) in (0, 130)
    finally:
        server.kill()
