"""Installs memagent_jax: to read; with extras, to train or to develop it.

Extras pick the accelerator too; the CPU needs none.
"""

from pathlib import Path
import runpy

from setuptools import find_packages, setup

# Importing the package loads nothing else, so that this needs no installed jax.
PACKAGE = runpy.run_path(
  str(Path(__file__).with_name('memagent_jax') / '__init__.py')
)

# Data, training, evaluation and reports. seqio brings TensorFlow.
TRAIN = [
  'bm25s>=0.2.7',
  'gin-config>=0.5',
  'matplotlib>=3.8',
  'optax>=0.2.5',
  'orbax-checkpoint>=0.12',
  'scipy>=1.11',
  'seqio>=0.0.20',
  'tensorboardX>=2.6',
  'wonderwords>=2.2',
]

setup(
  name='memagent-jax',
  version=PACKAGE['__version__'],
  description='A reinforcement-learned memory agent on JAX, TPU-first.',
  license='Apache-2.0',
  classifiers=[
    'Programming Language :: Python :: 3.11',
    'Programming Language :: Python :: 3.12',
    'Programming Language :: Python :: 3.13',
  ],
  # The gin files lie at the top of a checkout, and inside the package in a wheel.
  packages=[
    *find_packages(include=['memagent_jax*']),
    'memagent_jax.gin_configs',
  ],
  package_dir={'memagent_jax.gin_configs': 'gin_configs'},
  package_data={
    'memagent_jax': ['assets/**', 'evals/report/*.jinja', 'py.typed'],
    'memagent_jax.gin_configs': ['**/*.gin'],
  },
  entry_points={
    'console_scripts': ['memagent = memagent_jax.commands.cli:main'],
  },
  python_requires='>=3.11',
  # To read: `Reader`, `memagent ask`, the scorers.
  install_requires=[
    'absl-py>=2.1',
    'etils>=1.9',
    'flax>=0.12',
    'gguf>=0.17',
    'jax>=0.10',
    'jinja2>=3.1',
    'numpy>=2.0',
    'rich>=13',
    'safetensors>=0.5',
    'tensorstore>=0.1.70',
    'tokenizers>=0.21',
    'transformers>=5.0',
  ],
  extras_require={
    'train': TRAIN,
    'cuda': ['jax[cuda]'],
    'tpu': ['jax[tpu]'],
    # The TPU compiler, for `memagent plan` where there is no TPU.
    'tpu_aot': ['libtpu>=0.0.52'],
    'parity': ['torch>=2.5'],
    'parquet': ['pyarrow>=17'],
    'pdf': ['pypdf>=5'],
    'remote': ['openai>=2'],
    # The site: `make docs`.
    'docs': [
      'mkdocs>=1.6,<2',
      'mkdocs-material>=9.7,<10',
      'mkdocstrings[python]>=1',
      'ruff>=0.9',
    ],
    'dev': [
      *TRAIN,
      'hypothesis>=6.100',
      'mypy>=1.18',
      'openai>=2',
      'pyarrow>=17',
      'pypdf>=5',
      'pytest>=8',
      'pytest-timeout>=2.3',
      'pytest-xdist>=3.6',
      'ruff>=0.9',
    ],
  },
)
