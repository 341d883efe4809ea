"""Checks of chat messages before they reach a chat template."""

from typing import Any

from zipage.errors import InvalidRequestError


def normalize_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Check the messages of a chat and make every content a string.

    A content may be a string or a list of text parts, `{"type": "text", "text": ...}`, which are joined without a
    separator. Other keys of a message are left for the chat template to read.

    Raises:
        InvalidRequestError: there is no message, or one lacks a role or a content of these kinds.
    """
    if not messages:
        raise InvalidRequestError("messages must hold at least one message", "messages")
    return [_normalize(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _normalize(message: dict[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise InvalidRequestError(f"{name} must be an object with role and content", "messages")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidRequestError(f"{name}.role must be a non-empty string", "messages")
    return {**message, "content": _content_text(message.get("content"), f"{name}.content")}


def _content_text(content: Any, name: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequestError(f"{name} must be a string or a list of text parts", "messages")
    return "".join(_part_text(part, f"{name}[{index}]") for index, part in enumerate(content))


def _part_text(part: Any, name: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise InvalidRequestError(
            f'{name} must be {{"type": "text", "text": "..."}}; zipage reads text only', "messages"
        )
    return part["text"]
