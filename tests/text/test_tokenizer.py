"""Loading tokenizers, prompts and chats to tokens, single tokens to text."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import small_tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from zipage.errors import InvalidRequestError, ModelError
from zipage.models.source import default_model
from zipage.text.tokenizer import TextTokenizer

USER = [{"role": "user", "content": "hello"}]


def save(directory: Path, tokenizer_json: str, **config: object) -> None:
    (directory / "tokenizer.json").write_text(tokenizer_json)
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def byte_level_with_template(template: str) -> TextTokenizer:
    return small_tokenizers.wrap(small_tokenizers.byte_level_backend(), bos_token="<|bos|>", chat_template=template)


def test_bundled_tokenizer() -> None:
    tokenizer = TextTokenizer.load(default_model())
    assert tokenizer.encode("A=1\n</think>") == [44, 74, 9, 6, 5]
    assert tokenizer.decode([1, 44, 74, 5, 3], True) == "A=</think>"
    assert tokenizer.decode([1, 44, 74, 5, 3], False) == "<|user|>A=</think><|end|>"
    assert (tokenizer.vocab_size, tokenizer.eos_token_id, tokenizer.special_ids) == (93, 3, {0, 1, 2, 3})
    assert tokenizer.decode(tokenizer.encode_chat(USER), False) == "<|user|>hello<|end|><|assistant|>"
    assert tokenizer.byte_values == {}


def test_loading_and_using_a_tokenizer_imports_no_torch() -> None:
    program = """
import sys, pathlib
from zipage.text.tokenizer import TextTokenizer
tokenizer = TextTokenizer.load(pathlib.Path(sys.argv[1]))
assert tokenizer.encode_chat([{"role": "user", "content": "A"}]) == [1, 44, 3, 2]
assert tokenizer.decode(tokenizer.encode("A"), True) == "A"
sys.exit("torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program, str(default_model())], check=True)


def test_class_named_in_the_config_does_not_change_a_tokenizer_json(tmp_path: Path) -> None:
    backend = small_tokenizers.byte_level_backend()
    save(tmp_path, backend.to_str(), tokenizer_class="LlamaTokenizerFast", bos_token="<|bos|>", eos_token="<|end|>")
    text = "  hello\n\nworld 日本語"
    tokenizer = TextTokenizer.load(tmp_path)
    assert tokenizer.encode(text) == backend.encode(text).ids
    assert tokenizer.decode(tokenizer.encode(text), True) == text


def test_vocabulary_without_tokenizer_json(tmp_path: Path) -> None:
    backend = small_tokenizers.byte_level_backend()
    model = json.loads(backend.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|end|>", "unk_token": "<|end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = TextTokenizer.load(tmp_path)
    assert tokenizer.encode("hello 日本")[-1] == backend.encode("hello 日本").ids[-1]
    assert tokenizer.decode(tokenizer.encode("hello 日本"), True) == "hello 日本"
    assert tokenizer.eos_token_id == backend.token_to_id("<|end|>")


def test_chat_template_in_its_own_file(tmp_path: Path) -> None:
    save(tmp_path, small_tokenizers.byte_level_backend().to_str())
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    tokenizer = TextTokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode_chat(USER), False) == "hello!"


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer.json": "{ broken"},
        {"tokenizer.json": '{"version": "1.0"}'},
        {"vocab.json": "[]", "config.json": '{"model_type": "no-such-model"}'},
    ],
    ids=["none", "not_json", "incomplete", "unknown_kind"],
)
def test_missing_or_broken_tokenizer(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=str(tmp_path)):
        TextTokenizer.load(tmp_path)


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="absent"):
        TextTokenizer.load(tmp_path / "absent")


def test_code_of_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": {"AutoConfig": "code.Config"}}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["code.Tok", None]}}))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError):
        TextTokenizer.load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_prompts_are_neither_cut_nor_padded(tmp_path: Path) -> None:
    backend = small_tokenizers.byte_level_backend()
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    save(tmp_path, backend.to_str(), model_max_length=4, bos_token="<|bos|>", pad_token="<|end|>")
    tokenizer = TextTokenizer.load(tmp_path)
    for text in ("hello world " * 10, "a"):
        assert tokenizer.decode(tokenizer.encode(text), False) == f"<|bos|>{text}"


def test_text_that_the_vocabulary_cannot_express() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="nothing"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = small_tokenizers.wrap(backend)
    assert tokenizer.encode("a a") == [0, 0]
    with pytest.raises(InvalidRequestError, match="prompt cannot be tokenized") as refusal:
        tokenizer.encode("a b")
    assert refusal.value.field == "prompt"


def test_chat_has_one_bos_and_ends_where_the_answer_begins() -> None:
    tokenizer = small_tokenizers.byte_level()
    token_ids = tokenizer.encode_chat([{"role": "system", "content": "the fox"}, *USER])
    text = "<|bos|><|start|>system\nthe fox<|end|>\n<|start|>user\nhello<|end|>\n<|start|>assistant\n"
    assert tokenizer.decode(token_ids, False) == text
    bos, end = tokenizer.encode("<|end|>")
    assert token_ids.count(bos) == 1
    assert token_ids.count(end) == 2


def test_a_chat_that_the_vocabulary_cannot_express() -> None:
    with pytest.raises(InvalidRequestError, match="messages cannot be tokenized") as refusal:
        small_tokenizers.bundled().encode_chat([{"role": "user", "content": "é"}])
    assert refusal.value.field == "messages"


def test_text_parts_are_joined_and_other_keys_reach_the_template() -> None:
    tokenizer = byte_level_with_template("{{ messages[0].content }}|{{ messages[0].name }}")
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "fox"}]
    token_ids = tokenizer.encode_chat([{"role": "user", "content": parts, "name": "dog"}])
    assert tokenizer.decode(token_ids, False) == "the fox|dog"


def test_model_without_chat_template() -> None:
    with pytest.raises(InvalidRequestError, match="no chat template") as refusal:
        small_tokenizers.characters().encode_chat(USER)
    assert refusal.value.field == "messages"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ messages[7].content.x }}", "no element 7|undefined"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
    ],
    ids=["raised", "type_error", "undefined", "syntax", "sandbox"],
)
def test_template_that_fails(template: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as refusal:
        byte_level_with_template(template).encode_chat(USER)
    assert refusal.value.field == "messages"


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([], "at least one message"),
        (["hello"], r"messages\[0\] must be an object"),
        ([{"content": "x"}], r"messages\[0\]\.role"),
        ([*USER, {"role": "", "content": "x"}], r"messages\[1\]\.role"),
        ([{"role": 3, "content": "x"}], r"messages\[0\]\.role"),
        ([{"role": "user"}], r"messages\[0\]\.content must be a string"),
        ([{"role": "user", "content": 3}], r"messages\[0\]\.content must be a string"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\]\.content\[0\]"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], r"content\[0\].*text only"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text"}]}], r"content\[1\]"),
    ],
)
def test_malformed_messages(messages: list, named: str) -> None:
    with pytest.raises(InvalidRequestError, match=named) as refusal:
        small_tokenizers.byte_level().encode_chat(messages)
    assert refusal.value.field == "messages"


@pytest.mark.parametrize(
    ("kind", "token", "piece"),
    [
        ("byte_level", "Ġthe", " the"),
        ("byte_level", "ð", "\ufffd"),
        ("byte_level", "<|end|>", "<|end|>"),
        ("byte_fallback", "▁hello", " hello"),
        ("byte_fallback", "<0x0A>", "\n"),
        ("byte_fallback", "<0xE2>", "\ufffd"),
        ("metaspace", "▁the", " the"),
        ("word_piece", "world", " world"),
        ("word_piece", "##ing", "ing"),
        ("characters", "A", "A"),
        ("bundled", "A", "A"),
        ("bundled", "<think>", "<think>"),
    ],
)
def test_piece_is_the_token_inside_a_text(kind: str, token: str, piece: str) -> None:
    tokenizer = small_tokenizers.ALL[kind]()
    token_id = tokenizer._tokenizer.convert_tokens_to_ids(token)
    assert tokenizer.piece(token_id) == piece
    assert tokenizer.piece(token_id) == piece


def test_ids_outside_the_vocabulary_have_no_text() -> None:
    tokenizer = small_tokenizers.characters()
    assert tokenizer.piece(tokenizer.vocab_size) == ""
    assert tokenizer.decode([5, 63, 10**12, 6], False) == "AB"


def test_holes_in_the_vocabulary() -> None:
    tokenizer = small_tokenizers.wrap(Tokenizer(models.WordLevel({"a": 0, "b": 9}, unk_token="a")))
    assert tokenizer.vocab_size == 10
    assert tokenizer.has_text(9, False)
    assert not tokenizer.has_text(5, False)


def test_byte_tokens_are_found_by_what_they_decode_to() -> None:
    tokenizer = small_tokenizers.byte_fallback()
    vocabulary = tokenizer._tokenizer.get_vocab()
    assert tokenizer.byte_values == {vocabulary[f"<0x{value:02X}>"]: value for value in range(256)}
    lookalikes = Tokenizer(models.WordLevel({f"<0x{value:02X}>": value for value in range(256)}, unk_token="<0x00>"))
    assert TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=lookalikes)).byte_values == {}


def test_tokenizer_written_in_python() -> None:
    tokenizer = TextTokenizer(ByT5Tokenizer())
    token_ids = tokenizer.encode("naïve 日本")
    assert tokenizer.decode(token_ids, True) == "naïve 日本"
    assert tokenizer.decode(token_ids, False) == "naïve 日本</s>"
    assert tokenizer.piece(token_ids[0]) == "n"
