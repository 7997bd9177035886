"""Probes of texts, numbers, data and codecs."""

from __future__ import annotations

import base64
import codecs
import contextlib
import copy
import csv
import dataclasses
import decimal
import email
import email.message
import email.policy
import enum
import functools
import gzip
import hashlib
import hmac
import html
import io
import ipaddress
import json
import os
import pickle
import random
import re
import secrets
import statistics
import string
import struct
import textwrap
import typing
import unicodedata
import urllib.parse
import uuid
import zlib

import pydantic

from tests.probes.probe import PROBES, Probe, expect, probe


def _codec(name: str) -> Probe:
    return lambda: codecs.lookup(name)


for _name in (
    *("ascii", "latin_1", "utf_8", "utf_8_sig", "utf_16", "utf_16_le", "utf_16_be", "utf_32"),
    *("utf_7", "cp1252", "cp437", "iso8859_15", "unicode_escape", "raw_unicode_escape"),
    *("charmap", "shift_jis", "gb18030", "hex", "base64", "rot13", "punycode", "idna"),
):
    PROBES[f"codec_{_name}"] = _codec(_name)


@probe
def encode_idna() -> None:
    expect("b\u00fccher.example".encode("idna") == b"xn--bcher-kva.example", "encodes differently")


@probe
def encode_with_a_charset_of_the_client() -> None:
    b"text".decode("windows-1252").encode("ISO-8859-1")


@probe
def unicode_name_escape() -> None:
    expect(b"\\N{EM DASH}".decode("unicode_escape") == unicodedata.lookup("EM DASH"), "differs")


@probe
def regular_expression() -> None:
    re.compile(rf"(?i)(\w+)@{random.random()}").match("x")


@probe
def json_both_ways() -> None:
    json.loads(json.dumps({"a": [1, None, "\u00e9"]}, indent=2))


@probe
def json_error() -> None:
    with contextlib.suppress(json.JSONDecodeError):
        json.loads("{")


@probe
def pickle_both_ways() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        pickle.loads(pickle.dumps({"a": decimal.Decimal("1.1")}, protocol))


@probe
def deep_copy() -> None:
    copy.deepcopy({"a": [1, {2}]})


@probe
def data_class() -> None:
    made = dataclasses.make_dataclass("Made", ["x"])
    dataclasses.asdict(made(1))


@probe
def enumeration() -> None:
    enum.Enum("Colour", ["RED", "BLUE"])


@probe
def type_hints() -> None:
    typing.get_type_hints(probe)


@probe
def single_dispatch() -> None:
    @functools.singledispatch
    def general(value: object) -> str:
        return str(value)

    @general.register
    def _(value: int) -> str:
        return "int"

    general(1)


@probe
def number_formats() -> None:
    expect(f"{1234567.891:,.2f} {7:n}" == "1,234,567.89 7", "differs")
    str(decimal.Decimal(1) / 3)


@probe
def text_tools() -> None:
    textwrap.fill("a b " * 50)
    string.Template("$a").substitute(a=1)
    html.escape("<")
    urllib.parse.urlsplit("http://h/p?q=1")


@probe
def csv_both_ways() -> None:
    csv.writer(io.StringIO()).writerow([1, "a,b"])


@probe
def binary_tools() -> None:
    struct.pack("!IH", 1, 2)
    base64.b64decode(base64.b64encode(b"x"))
    zlib.decompress(zlib.compress(b"x"))
    gzip.decompress(gzip.compress(b"x"))


@probe
def hashes() -> None:
    hashlib.sha256(b"x").hexdigest()
    hashlib.new("sha1", b"x").hexdigest()
    hmac.new(b"k", b"x", "sha256").hexdigest()
    hashlib.scrypt(b"x", salt=b"y", n=2, r=1, p=1)


@probe
def random_numbers() -> None:
    os.urandom(8)
    secrets.token_hex()
    random.SystemRandom().random()
    uuid.uuid4()
    statistics.mean([1, 2])


@probe
def uuid_of_this_host() -> None:
    uuid.uuid1()


@probe
def addresses() -> None:
    ipaddress.ip_network("2001:db8::/32")


@probe
def pydantic_model() -> None:
    model = pydantic.create_model("Made", number=(int, ...))
    with contextlib.suppress(pydantic.ValidationError):
        model.model_validate({"number": "none"})
    model.model_json_schema()


@probe
def read_a_mail() -> None:
    email.message_from_bytes(b"Subject: x\r\n\r\nbody", policy=email.policy.default)


@probe
def write_a_mail() -> None:
    message = email.message.EmailMessage()
    message["Subject"] = "x"
    message.set_content("body")
    message.as_bytes()
