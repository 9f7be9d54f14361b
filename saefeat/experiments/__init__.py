"""Experiments on a run: what happens when units are switched off, amplified or swapped.

Each module is one experiment: a function of a run and a configuration, which writes one file
(`saefeat.artefacts.experiments`).
"""
