"""Tests; a package, so that a folder like tests/cluster never shadows the package it tests."""
