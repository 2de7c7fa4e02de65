"""What pyproject.toml cannot express: the embedded model's folder is a package of the wheel."""

from setuptools import find_packages, setup

EMBEDDED_MODEL = "sae_engine.tiny_gemma2"

setup(
    packages=[*find_packages(include=["sae_engine*", "backend*", "frontend*"]), EMBEDDED_MODEL],
    package_dir={EMBEDDED_MODEL: "data/tiny_gemma2"},
)
