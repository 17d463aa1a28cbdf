"""An S3 server on a loopback address: moto's, as a process of its own, with its identities and the checks of them."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tools.integrations.s3 import REGION, S3Server
from tools.ports import free_port

__all__ = ["REGION", "S3Server", "running"]


@contextmanager
def running(bucket: str = "models") -> Iterator[S3Server]:
    """The server, while it runs. From the first answer on it checks who asks."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait(f"{url}/moto-api/data.json", process)
            yield _prepared(url, bucket)
        finally:
            process.terminate()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert process.poll() is None, "the S3 server ended: is moto installed?"
            time.sleep(0.1)
    raise AssertionError("the S3 server did not answer")


def _prepared(url: str, bucket: str) -> S3Server:
    import boto3

    def client(service: str) -> Any:
        known = {"aws_access_key_id": "first", "aws_secret_access_key": "first"}
        return boto3.client(service, endpoint_url=url, region_name=REGION, **known)

    client("s3").create_bucket(Bucket=bucket)
    identities = client("iam")
    identities.create_user(UserName="fettle")
    everything = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}'
    identities.put_user_policy(UserName="fettle", PolicyName="all", PolicyDocument=everything)
    made = identities.create_access_key(UserName="fettle")["AccessKey"]
    headers = {"Content-Type": "text/plain"}
    checked = urllib.request.Request(f"{url}/moto-api/reset-auth", data=b"0", headers=headers, method="POST")
    urllib.request.urlopen(checked, timeout=5).close()
    return S3Server(url, bucket, made["AccessKeyId"], made["SecretAccessKey"])
