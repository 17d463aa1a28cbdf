"""Tokens of a ServiceAccount, checked by a real API server as a serving pod has them checked."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import yaml
from tests.cluster.conftest import Kubectl

from fettle.errors import ClusterError
from fettle.server.access import Access
from fettle.server.request import Code, RequestError
from fettle.server.reviews import require_permission
from fettle.server.settings import ServerSettings

pytestmark = pytest.mark.cluster
AUDIENCE = "digits.team.svc"


def account(kubectl: Kubectl, name: str) -> str:
    """A ServiceAccount of the test's namespace; its name as a user."""
    kubectl("create", "serviceaccount", name)
    return f"system:serviceaccount:{kubectl.namespace}:{name}"


def token(kubectl: Kubectl, name: str, *options: str) -> str:
    return kubectl("create", "token", name, *options).strip()


def settings(kubectl: Kubectl, folder: Path, own: str, **more: object) -> ServerSettings:
    """What a pod with that token of its own is told."""
    config = yaml.safe_load(kubectl.kubeconfig.read_text())
    found = config["clusters"][0]["cluster"]
    authority = found.get("certificate-authority-data")
    content = base64.b64decode(authority) if authority else Path(found["certificate-authority"]).read_bytes()
    folder.mkdir()
    (folder / "ca.crt").write_bytes(content)
    (folder / "token").write_text(own)
    told = {
        "token_review_folder": folder,
        "token_review_server": found["server"],
        "token_review_audiences": (AUDIENCE,),
    }
    return ServerSettings(**told, **more)  # type: ignore[arg-type]


async def who(guard: Access, bearer: str) -> str | Code:
    """Who is let in with that token, or how the request ends."""
    try:
        return await guard.identify(f"Bearer {bearer}", "10.0.0.7")
    except RequestError as error:
        return error.code


async def test_a_service_account_is_known_by_a_token_for_the_models_audience_and_only_where_the_pod_may_ask(
    kubectl: Kubectl, namespace: str, tmp_path: Path
) -> None:
    client, _ = account(kubectl, "web"), account(kubectl, "server")
    good = token(kubectl, "web", "--audience", AUDIENCE)
    own = token(kubectl, "server")
    before = settings(kubectl, tmp_path / "before", own)
    with pytest.raises(ClusterError, match=r"403 Forbidden: .* rbac\.tokenReviewers"):
        await require_permission(before)
    assert await who(Access(before), good) is Code.UNAVAILABLE
    # As the chart's rbac.tokenReviewers grants it.
    name = f"{namespace}-token-review"
    rule = {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}
    api = "rbac.authorization.k8s.io/v1"
    role = {"apiVersion": api, "kind": "ClusterRole", "metadata": {"name": name}, "rules": [rule]}
    binding = {
        "apiVersion": api,
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "server", "namespace": namespace}],
    }
    try:
        kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": [role, binding]}))
        after = settings(kubectl, tmp_path / "after", own)
        await require_permission(after)
        guard = Access(after)
        assert await who(guard, good) == client
        assert await who(guard, token(kubectl, "web")) is Code.UNAUTHENTICATED, "it is for the API server"
        assert await who(guard, token(kubectl, "web", "--audience", "other")) is Code.UNAUTHENTICATED
        assert await who(guard, f"{good[:-4]}AAAA") is Code.UNAUTHENTICATED
        team = f"system:serviceaccounts:{namespace}"
        known = settings(kubectl, tmp_path / "team", own, token_review_groups=(team,))
        assert await who(Access(known), good) == client
        others = settings(kubectl, tmp_path / "others", own, token_review_groups=("system:serviceaccounts:other",))
        assert await who(Access(others), good) is Code.UNAUTHENTICATED
    finally:
        kubectl("delete", "clusterrole,clusterrolebinding", name, "--ignore-not-found")
