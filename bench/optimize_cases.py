"""The models of `bench/optimize.py`: those of `bench/model_catalog.py` that have a task, with items enough to hold a third of them out."""

from __future__ import annotations

from dataclasses import replace

from bench import model_catalog

COUNT = 288  # items in all, of which a third judges and five twelfths certify: up to three changed answers pass at a drop of .1
COUNTS = {
    "magika": 300,
    "ocr-lines": COUNT,
    "ocr-pages": COUNT,
    "ocr-direction": COUNT,
    "orientation": COUNT,
    "captcha-boxes": COUNT,
    "captcha-slider": 180,
    "nudenet": COUNT,
    "open-nsfw": COUNT,
    "basic-pitch": COUNT,
    "dnsmos": 180,
    "tashkeel": COUNT,
    "tabular": 569,
    "torch-resemblyzer": COUNT,
    "torch-crepe-tiny": 300,
    "torch-crepe-full": COUNT,
    "torch-fcpe": COUNT,
}
CASES = {name: replace(model_catalog.CASES[name], count=count) for name, count in COUNTS.items()}
