"""The models of `bench/optimize.py`: those of `bench/model_catalog.py` that have a task, with items enough to hold a third of them out."""

from __future__ import annotations

from dataclasses import replace

from bench import model_catalog

COUNT = 192  # items in all
COUNTS = {
    "magika": 300,
    "ocr-lines": COUNT,
    "ocr-pages": COUNT,
    "ocr-direction": COUNT,
    "orientation": COUNT,
    "captcha-boxes": COUNT,
    "captcha-slider": 120,
    "nudenet": COUNT,
    "open-nsfw": COUNT,
    "basic-pitch": COUNT,
    "dnsmos": COUNT,
    "tashkeel": COUNT,
    "tabular": 569,
    "torch-resemblyzer": COUNT,
    "torch-crepe-tiny": 300,
    "torch-crepe-full": COUNT,
    "torch-fcpe": COUNT,
}
CASES = {name: replace(model_catalog.CASES[name], count=count) for name, count in COUNTS.items()}
