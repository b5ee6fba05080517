"""Odd and hostile files where an image or its labels should be, made on demand.

``KINDS`` has a function ``(path)`` for each; the good image and labels beside them are of ``SIZE``.
"""

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

SIZE = (48, 32)  # width, height
CLAIM = 20_000  # pixels a side: 400 million, 1.2 GB of RGB
_DRAW = np.random.default_rng(0)
PIXELS = _DRAW.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
LABELS = np.arange(SIZE[0] * SIZE[1], dtype=np.uint8).reshape(SIZE[1], SIZE[0]) % 3


def good_image(path: Path) -> None:
    Image.fromarray(PIXELS).save(path, format='PNG')


def good_labels(path: Path) -> None:
    Image.fromarray(LABELS).save(path, format='PNG')


def _encoded(kind: str, mode: str = 'RGB', pixels: np.ndarray = PIXELS, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def _png(width: int, height: int, rows: bytes = b'', color: int = 2, bits: int = 8) -> bytes:
    """A PNG whose header may claim anything."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', checksum)

    header = struct.pack('>IIBBBBB', width, height, bits, color, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        [chunk(b'IHDR', header), chunk(b'IDAT', zlib.compress(rows, 1)), chunk(b'IEND', b'')]
    )


def _claiming(kind: str, offset: int, sides: str) -> bytes:
    """A small file of which the header alone is changed: sides as struct packs them."""
    data = bytearray(_encoded(kind))
    claim = min(CLAIM, 2**15 - 1)
    data[offset : offset + struct.calcsize(sides)] = struct.pack(sides, claim, claim)
    return bytes(data)


def _jpeg_claiming() -> bytes:
    data = _encoded('JPEG')
    return _claiming('JPEG', data.index(b'\xff\xc0') + 5, '>HH')


def _tiff_claiming() -> bytes:
    data = bytearray(_encoded('TIFF'))
    start = struct.unpack_from('<I', data, 4)[0] + 2
    for i in range(struct.unpack_from('<H', data, start - 2)[0]):
        tag = struct.unpack_from('<H', data, start + 12 * i)[0]
        if tag in (256, 257):  # width and height
            struct.pack_into('<HII', data, start + 12 * i + 2, 4, 1, CLAIM)
    return bytes(data)


def _text_bomb() -> bytes:
    info = PngInfo()
    info.add_text('Comment', '0' * (8 << 20), zip=True)  # PIL reads 1 MiB
    return _encoded('PNG', pnginfo=info)


def _sparse(start: bytes, path: Path) -> None:
    with open(path, 'wb') as file:
        file.write(start)
        file.truncate(6 << 30)


def _bind_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as endpoint:
        folder = os.open(path.parent, os.O_RDONLY)  # a socket's path may have 107 bytes
        try:
            endpoint.bind(f'/proc/self/fd/{folder}/{path.name}')
        finally:
            os.close(folder)


def _link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_suffix('.fifo'))
    path.symlink_to(path.with_suffix('.fifo'))


def _link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


_GOOD_PNG, _GOOD_JPEG = _encoded('PNG'), _encoded('JPEG')
_PNG_LABELS = _encoded('PNG', 'L', LABELS)
_EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 32\n%%EndComments\n(x) (w) file\n%%EOF\n'

SPECIAL: dict[str, Callable[[Path], None]] = {
    'missing': lambda path: None,
    'dangling link': _link('nowhere'),
    'link to itself': lambda path: path.symlink_to(path.name),
    'folder': lambda path: path.mkdir(),
    'FIFO': lambda path: os.mkfifo(path),
    'link to a FIFO': _link_to_fifo,
    'socket': _bind_socket,
    '/dev/zero': _link('/dev/zero'),
    '/dev/null': _link('/dev/null'),
    '/dev/urandom': _link('/dev/urandom'),
}
"""No file at all, and files of the system."""

CONTENT: dict[str, bytes | Callable[[], bytes]] = {
    'empty': b'',
    'text': b'no image',
    'page of a server': b'<!DOCTYPE html><html>404</html>',
    'svg': b'<svg xmlns="http://www.w3.org/2000/svg" width="48" height="32"/>',
    'pdf': b'%PDF-1.4\n1 0 obj<<>>endobj\n',
    'postscript': _EPS,
    'zip': b'PK\x03\x04' + bytes(60),
    'pickle': b"\x80\x04cos\nsystem\n(S'exit 3'\ntR.",
    'zeros': bytes(4096),
    'noise': _DRAW.bytes(4096),
    'png, signature alone': _GOOD_PNG[:8],
    'png, header alone': _GOOD_PNG[:33],
    'png, half': _GOOD_PNG[: len(_GOOD_PNG) // 2],
    'png, end missing': _GOOD_PNG[:-60],
    'png, checksum': _GOOD_PNG[:60] + b'\0\0\0\0' + _GOOD_PNG[64:],
    'png, header checksum': _GOOD_PNG[:29] + bytes(4) + _GOOD_PNG[33:],
    'png, labels cut': _PNG_LABELS[:-30],
    'jpeg, half': _GOOD_JPEG[: len(_GOOD_JPEG) // 2],
    'jpeg, start alone': _GOOD_JPEG[:20],
    'png claims 20,000 x 20,000': _png(CLAIM, CLAIM),
    'png claims 2^31 pixels': _png(2**16, 2**15),
    'png claims 2^62 pixels': _png(2**31 - 1, 2**31 - 1),
    'png claims 2^31 in a row': _png(2**31 - 1, 1),
    'png claims none': _png(0, 0),
    'png bomb': lambda: _png(CLAIM, CLAIM, bytes(CLAIM * (CLAIM // 8 + 1)), color=0, bits=1),
    'bmp claims': lambda: _claiming('BMP', 18, '<ii'),
    'gif claims': lambda: _claiming('GIF', 6, '<HH'),
    'jpeg claims': _jpeg_claiming,
    'tiff claims': _tiff_claiming,
    'ppm claims': b'P6\n20000 20000\n255\n' + bytes(100),
    'png, comment bomb': _text_bomb,
    'jpeg, damaged exif': lambda: _encoded('JPEG', exif=b'Exif\0\0MM\0*\0\0\0\xff\xff\xff\xff'),
    'gray': lambda: _encoded('PNG', 'L'),
    'bilevel': lambda: _encoded('PNG', '1'),
    'palette': lambda: _encoded('PNG', 'P'),
    'rgba': lambda: _encoded('PNG', 'RGBA'),
    'gray and alpha': lambda: _encoded('PNG', 'LA'),
    'cmyk': lambda: _encoded('JPEG', 'CMYK'),
    '16 bits': lambda: _encoded('PNG', 'I;16', LABELS.astype(np.uint16)),
    '32 bits': lambda: _encoded('TIFF', 'I', LABELS.astype(np.int32)),
    'float': lambda: _encoded('TIFF', 'F', LABELS.astype(np.float32)),
    'gif': lambda: _encoded('GIF'),
    'bmp': lambda: _encoded('BMP'),
    'webp': lambda: _encoded('WEBP', lossless=True),
    'tiff': lambda: _encoded('TIFF'),
    'jpeg': _GOOD_JPEG,
    'turned by exif': lambda: _encoded('JPEG', pixels=PIXELS.swapaxes(0, 1), exif=_turned()),
    '1 x 1': lambda: _encoded('PNG', 'L', LABELS[:1, :1]),
    '1 x 1, color': lambda: _encoded('PNG', pixels=PIXELS[:1, :1]),
    'another size': lambda: _encoded('PNG', 'L', LABELS[::2, ::2]),
    'another size, color': lambda: _encoded('PNG', pixels=PIXELS[::2, ::2]),
    'other classes': lambda: _encoded('PNG', 'L', LABELS + 9),
    'labels': _PNG_LABELS,
    'labels as palette': lambda: _encoded('PNG', 'P', LABELS),
    'image': _GOOD_PNG,
}
"""What a regular file may hold."""


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@cache
def _made(content: Callable[[], bytes]) -> bytes:
    return content()


def _write(content: bytes | Callable[[], bytes], path: Path) -> None:
    path.write_bytes(_made(content) if callable(content) else content)


KINDS: dict[str, Callable[[Path], None]] = {
    **SPECIAL,
    '6 GiB of nothing': partial(_sparse, b''),
    '6 GiB after an image': partial(_sparse, _GOOD_PNG),
    **{name: partial(_write, content) for name, content in CONTENT.items()},
}
