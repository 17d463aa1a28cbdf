"""What the API server's refusals mean: one table for the operator's client and for the command line's."""

from __future__ import annotations

import json
from dataclasses import dataclass

from fettle.api.reasons import Reason
from fettle.errors import ClusterError, ConflictError, ExistsError, MissingError

SHOWN = 512  # bytes of an answer that is no Status


@dataclass(frozen=True)
class Refusal:
    """An answer that is not a success; 0 stands for none at all. `word`: the reason that Kubernetes gives, such as AlreadyExists."""

    status: int
    message: str
    word: str = ""

    @classmethod
    def of(cls, status: int, body: bytes | str, otherwise: str = "") -> Refusal:
        """The refusal in a body. `otherwise`: the message if the body has none."""
        try:
            answer = json.loads(body)
            message, word = answer.get("message"), answer.get("reason")
        except (ValueError, AttributeError):
            message, word = None, None
        text = body if isinstance(body, str) else body[:SHOWN].decode(errors="replace")
        return cls(status, str(message or otherwise or text[:SHOWN]), str(word or ""))

    def error(self, text: str) -> ClusterError:
        """The error for this refusal; `text` says it to a person."""
        if self.status == 404:
            return MissingError(text, retryable=True)
        if self.status == 409:
            kind = ExistsError if self.word == "AlreadyExists" else ConflictError
            return kind(text, retryable=True)
        if self.status == 403 and "exceeded quota" in self.message:
            return ClusterError(text, reason=Reason.QUOTA_EXCEEDED, retryable=True)
        if self.status in (401, 403):
            passes = self.status == 401 or "being terminated" in self.message
            return ClusterError(text, reason=Reason.FORBIDDEN, retryable=passes)
        # 410: the pages of a list are too old, and it begins anew
        if self.status in (0, 408, 410, 429) or self.status >= 500:
            return ClusterError(text, reason=Reason.CLUSTER_UNREACHABLE, retryable=True)
        return ClusterError(text, reason=Reason.INVALID_SPEC)
