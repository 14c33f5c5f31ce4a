"""Where an OpenAI-compatible model answers, and how one is let in: OpenAI's own form, Azure's and Databricks'."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

OPENAI = "https://api.openai.com/v1"
AZURE_VERSION = "2025-02-01-preview"
"""What litellm asks Azure for where nobody says another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to post to, and the headers that open it. `served` is the model's name there; None: the URL says it."""

    url: str
    served: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def openai_address(served: str, base_url: str = OPENAI, key: str | None = None) -> Address:
    """`base_url` is the part before /chat/completions: OpenAI's, vLLM's, llama.cpp's, a gateway's."""
    return Address(
        url=f"{base_url.rstrip('/')}/chat/completions",
        served=served,
        headers={"Authorization": f"Bearer {key}"} if key else {},
    )


def azure_address(deployment: str, base_url: str, key: str, version: str | None = None) -> Address:
    """A deployment of Azure OpenAI; `base_url` is the resource's, or its /openai/v1, which knows no versions."""
    base_url = base_url.rstrip("/")
    headers = {"api-key": key}
    if base_url.endswith("/openai/v1"):
        return Address(url=f"{base_url}/chat/completions", served=deployment, headers=headers)
    resource = base_url.removesuffix("/openai")
    path = f"/openai/deployments/{quote(deployment, safe='')}/chat/completions"
    return Address(url=f"{resource}{path}?api-version={version or AZURE_VERSION}", headers=headers)


def databricks_address(endpoint: str, host: str, token: str) -> Address:
    """A serving endpoint of a Databricks workspace; `host` is the workspace's, with or without https://."""
    workspace = host.rstrip("/").removesuffix("/serving-endpoints")
    if "://" not in workspace:
        workspace = f"https://{workspace}"
    return Address(
        url=f"{workspace}/serving-endpoints/{quote(endpoint, safe='')}/invocations",
        headers={"Authorization": f"Bearer {token}"},
    )
