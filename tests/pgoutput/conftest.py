"""Both decoders, under one name: what holds for one holds for the other."""

from __future__ import annotations

import pytest

from headrace.pgoutput import KERNEL, Decoder, ReferenceDecoder

DECODERS = [ReferenceDecoder, *([Decoder] if KERNEL else [])]


@pytest.fixture(params=DECODERS, ids=lambda kind: kind.__name__)
def decoder_type(request: pytest.FixtureRequest) -> type[ReferenceDecoder]:
    return request.param


@pytest.fixture
def decoder(decoder_type: type[ReferenceDecoder]) -> ReferenceDecoder:
    return decoder_type()
