"""Students that somebody trained before: any encoder from a folder or the hub."""

from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from egkd.students.base import Origin, Outline, Student
from egkd.students.loading import load_encoder, load_tokenizer, loaded


class Encoder(Student):
    """A pre-trained encoder with its own tokenizer; its head is new where it does not fit the task."""

    source: str
    """Folder or hub id."""

    def check(self, teacher: str, *, trust_remote_code: bool) -> None:
        """As `Student.check`."""
        loaded(AutoConfig, self.source, trust_remote_code=trust_remote_code)

    def outline(self, teacher: str, *, trust_remote_code: bool) -> Outline:
        """As `Student.outline`."""
        return Outline(config=loaded(AutoConfig, self.source, trust_remote_code=trust_remote_code), tokenizer=self.source)

    def build(self, origin: Origin) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """As `Student.build`."""
        trust = origin.trust_remote_code
        model = load_encoder(self.source, origin.task, seed=origin.seed, trust_remote_code=trust)
        return model, load_tokenizer(self.source, trust_remote_code=trust)
