"""Installs memagent_jax; extras pick the accelerator, CPU needs none."""

from setuptools import find_packages, setup

setup(
  name='memagent_jax',
  version='0.1.0',
  description='A reinforcement-learned memory agent on JAX, TPU-first.',
  license='Apache-2.0',
  packages=find_packages(include=['memagent_jax*', 'experiments*']),
  python_requires='>=3.11',
  install_requires=[
    'absl-py>=2.1',
    'bm25s>=0.2.7',
    'etils>=1.9',
    'flax>=0.12',
    'gguf>=0.17',
    'gin-config>=0.5',
    'jax>=0.10',
    'jinja2>=3.1',
    'matplotlib>=3.8',
    'numpy>=2.0',
    'optax>=0.2.5',
    'orbax-checkpoint>=0.12',
    'rich>=13',
    'safetensors>=0.5',
    'scipy>=1.11',
    'seqio>=0.0.20',
    'tensorboardX>=2.6',
    'tensorstore>=0.1.70',
    'tokenizers>=0.21',
    'transformers>=5.0',
    'wonderwords>=2.2',
  ],
  extras_require={
    'cuda': ['jax[cuda]'],
    'tpu': ['jax[tpu]'],
    # The TPU compiler, for `experiments.plan` where there is no TPU.
    'tpu_aot': ['libtpu>=0.0.52'],
    'parity': ['torch>=2.5'],
    'parquet': ['pyarrow>=17'],
    'pdf': ['pypdf>=5'],
    'remote': ['openai>=2'],
    'dev': [
      'hypothesis>=6.100',
      'openai>=2',
      'pyarrow>=17',
      'pypdf>=5',
      'pytest>=8',
      'pytest-xdist>=3.6',
      'ruff>=0.9',
    ],
  },
)
