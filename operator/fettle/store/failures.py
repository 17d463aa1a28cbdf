"""Why a request to a place outside failed, in words of ours: the client's own may show what was sent."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fettle.api.reasons import Reason
from fettle.api.text import joined
from fettle.errors import FettleError
from fettle.store.places import Missing, Place, holder, identity_in_environment

# Of S3 and of the service that gives tokens for it; MinIO calls a token InvalidTokenId.
EXPIRED = (
    "ExpiredToken",
    "TokenRefreshRequired",
    "InvalidToken",
    "InvalidTokenId",
    "ExpiredTokenException",
    "InvalidClientTokenId",
)
SKEWED = "RequestTimeTooSkewed"
DENIED = (
    *EXPIRED,
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    SKEWED,
    "XAdminUserNotFound",
)
ELSEWHERE = (
    "PermanentRedirect",
    "TemporaryRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "InvalidRegion",
)
# Keys of a Secret, and variables, that say who asks.
_IDENTITY = re.compile(
    "key|token|secret|credentials|service_account|client_id|username|password|dockerconfig", re.IGNORECASE
)
NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
FULL = ("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage")
# Addresses that are asked for an identity where nothing says who we are.
IDENTITY_SERVICES = ("169.254.169.254", "metadata.google.internal", "169.254.170.2")
NAMELESS = "no credentials: name a Secret with them in secretName, or give the pods an identity with access"
STRAYED_BUCKET = "the server redirects to another address, which is not followed: set AWS_REGION and AWS_ENDPOINT_URL to those of the bucket"
STRAYED_WEB = "the server redirects to an address that is not followed: only https:// is, or http:// from http://, and only where something is read"
UNTRUSTED = "its certificate is not trusted; put the CA's certificate under the key ca.crt into the Secret that secretName names"
# What the account of a failed connection contains, by obstore or by Python -> what it means.
CAUSES = {
    "NotValidForName": "its certificate is for another name",
    "Hostname mismatch": "its certificate is for another name",
    "IP address mismatch": "its certificate is for another name",
    "Expired": "its certificate has expired",
    "certificate has expired": "its certificate has expired",
    "InvalidCertificate": UNTRUSTED,
    "CERTIFICATE_VERIFY_FAILED": UNTRUSTED,
    "InvalidContentType": "it does not speak TLS",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "RECORD_LAYER_FAILURE": "it does not speak TLS",
    "dns error": "its name is not known",
    "Name or service not known": "its name is not known",
    "name resolution": "its name is not known",
    "No address associated": "its name is not known",
    "ConnectionRefused": "the connection was refused",
    "Connection refused": "the connection was refused",
    "imed out": "it did not answer in time",
    "TimedOut": "it did not answer in time",
}


@dataclass(frozen=True)
class Failure:
    """What is known of a request that failed for good. `text` is the client's account of it, and never shown."""

    text: str
    not_found: bool
    status: str
    code: str
    region: str = ""

    @classmethod
    def of(cls, text: str, not_found: bool) -> Failure:
        """Read from the client's account."""
        status, code = re.search(r"status code: (\d{3})", text), re.search(r"<Code>(\w+)</Code>", text)
        region = re.search(r"<Region>([a-z0-9-]{1,40})</Region>|; expecting '([a-z0-9-]{1,40})'", text)
        named = next(filter(None, region.groups())) if region else ""
        return cls(text, not_found, status[1] if status else "", code[1] if code else "", named)

    @property
    def absent(self) -> bool:
        """Whether there is no such file, in a bucket that is there. versitygw answers 404 to an identity that it does not know."""
        return (self.not_found or self.status == "404") and self.code not in (*NO_BUCKET, *DENIED)

    @property
    def denied(self) -> bool:
        """Whether the server would not let this identity in."""
        return self.status in ("401", "403") or self.code in DENIED

    @property
    def redirect(self) -> bool:
        """Whether the server sent to another place that was not gone to."""
        return self.status.startswith("3") or "builder error" in self.text or "redirect" in self.text.split("\n")[0]

    @property
    def changed(self) -> bool:
        """Whether the file is another by now."""
        return self.status == "412" or self.text.startswith("Precondition") or "Precondition {" in self.text

    @property
    def passing(self) -> bool:
        """Whether the same request may be answered later."""
        return self.status.startswith("5") or self.status in ("408", "429")

    @property
    def nameless(self) -> bool:
        """Whether it was a service of the cloud that could not say who the pod is."""
        return any(service in self.text for service in IDENTITY_SERVICES)

    @property
    def cause(self) -> str:
        """Why there was no connection, or why it ended."""
        return next((told for sign, told in CAUSES.items() if sign in self.text), "the connection broke")


def error_of(place: Place, where: str, failure: Failure, missing: Missing) -> FettleError:
    """What is told of a failure at the address `where`, other than that a file is absent, and whether it may pass."""
    status = " ".join(filter(None, (failure.status, failure.code)))
    if failure.code in NO_BUCKET:
        return missing(f"{where}: there is no bucket of this name: create it, or correct the address")
    if failure.code in ELSEWHERE:
        return missing(f"{where}: {_elsewhere(place, failure)} ({status})")
    if failure.denied:
        return missing(f"{where}: {_refusal(place, failure)} ({status})", reason=Reason.FORBIDDEN)
    if failure.code in FULL:
        message = f"{where}: the store is full: free space with `fettle prune`"
        return missing(message, reason=Reason.STORE_FULL, retryable=True)
    if failure.redirect:
        return missing(f"{where}: {STRAYED_BUCKET if place.lists else STRAYED_WEB}")
    if failure.changed:
        return missing(f"{where} was changed while it was read", retryable=True)
    if failure.status and not failure.passing:
        return missing(f"{where}: the server answered {status}")
    if failure.nameless:
        return missing(f"{where}: {NAMELESS}", reason=Reason.FORBIDDEN)
    cause = f"it answered {status}" if status else failure.cause
    message = f"{where}: the server cannot be reached: {cause}"
    return missing(message, reason=Reason.STORE_UNREACHABLE, retryable=True)


def _elsewhere(place: Place, failure: Failure) -> str:
    """The bucket is in another region than the one that the request was signed for."""
    named = f"the region {failure.region}" if failure.region else "another region"
    return f"the bucket is in {named}: set AWS_REGION to it in {holder(place.credentials)}"


def _refusal(place: Place, failure: Failure) -> str:
    given = place.credentials
    names = given.values if given is not None else identity_in_environment(place.root.partition(":")[0])
    keys = [name for name in names if _IDENTITY.search(name)]
    if given is None and not keys:
        return "access was denied without credentials: name a Secret with them in secretName"
    if failure.code == SKEWED:
        return "the clock of this machine and that of the server differ too much: correct the one that is wrong"
    where = holder(given)
    if failure.code in EXPIRED:
        return f"the credentials in {where} are no longer valid, because they expired or were revoked: renew {joined(keys or ['them'])}"
    if failure.code == "AccessDenied":
        return f"access was denied to the identity in {where}: grant it access to this path"
    return f"the credentials in {where} were refused: correct {joined(keys or ['its keys'])}"
