"""Packages of the wheel: all below `tokcli`, and the recipes beside it, which no search by folder finds."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["tokcli", "tokcli.*"]), "tokcli.recipes"])
