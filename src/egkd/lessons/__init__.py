"""The teacher's side, computed once: lessons on disk, memory-mapped, read by row, refused when stale.

A lesson store is a folder of Arrow shards and a `manifest.json` that is written last. Its name carries a fingerprint of
everything the lesson depends on: the teacher's weights, its tokenizer, the texts, their order, and the settings.
A build that was killed goes on after its last whole shard. docs/lessons.md tells the format.
"""

from egkd.lessons.build import build_lessons
from egkd.lessons.columns import stack
from egkd.lessons.fingerprints import fingerprint_model, fingerprint_texts, fingerprint_tokenizer
from egkd.lessons.store import Lessons, StaleLessons

__all__ = [
    "Lessons",
    "StaleLessons",
    "build_lessons",
    "fingerprint_model",
    "fingerprint_texts",
    "fingerprint_tokenizer",
    "stack",
]
