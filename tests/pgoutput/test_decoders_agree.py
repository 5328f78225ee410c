"""The kernel gives what the reference gives: on any valid stream, and on any damaged one.

`HEADRACE_FUZZ_EXAMPLES=5000` runs more than the default number of examples.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from typing import Any

import pytest
from decoded_rows import plain
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pgoutput_bytes import (
    UNCHANGED,
    Binary,
    be,
    begin,
    begin_prepare,
    commit,
    commit_prepared,
    delete,
    frame,
    insert,
    message,
    prepare,
    relation,
    rollback_prepared,
    stream_abort,
    stream_commit,
    stream_start,
    string,
    truncate,
    update,
)

from headrace.errors import ProtocolError, SlotLostError
from headrace.pgoutput import KERNEL, Decoder, ReferenceDecoder

pytestmark = pytest.mark.skipif(not KERNEL, reason="the kernel is not built")

thorough = settings(
    max_examples=int(os.environ.get("HEADRACE_FUZZ_EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

TAKE = None  # a step of a stream that is no frame: take() here

OIDS = (1, 16384, (1 << 32) - 1)
names = st.text("ab\u00e9", max_size=3)
values = st.one_of(
    st.binary(max_size=12),
    st.binary(max_size=12).map(Binary),
    st.just(b"x" * 700),
    st.none(),
    st.just(UNCHANGED),
)
timestamps = st.integers(-(1 << 63), (1 << 63) - 1 - 946_684_800_000_000)
lsns = st.integers(0, (1 << 64) - 1)
xids = st.integers(0, (1 << 32) - 1)


@dataclass
class Stream:
    """A stream that is being drawn: what the server would have to know."""

    draw: Any
    steps: list[bytes | None] = field(default_factory=list)
    widths: dict[int, int] = field(default_factory=dict)
    streams: dict[int, dict[int, int]] = field(default_factory=dict)  # xid -> its tables' widths
    own: dict[int, set[int]] = field(default_factory=dict)  # of these, what nobody told since
    prepared: set[int] = field(default_factory=set)
    xid: bytes = b""  # that rows bear, inside a block
    top: int = 0  # the block's transaction

    def send(self, payload: bytes) -> None:
        self.steps.append(frame(payload))
        if self.draw(st.integers(0, 9)) == 0:
            self.steps.append(TAKE)

    def tell_relation(self, oid: int) -> None:
        columns = self.draw(st.lists(names, max_size=4))
        self.widths[oid] = len(columns)
        if self.top:
            self.own[self.top].add(oid)
        else:
            self.forget(oid)
        self.send(
            relation(
                oid,
                columns,
                name=self.draw(names),
                namespace=self.draw(names),
                identity=self.draw(st.sampled_from("dnfi")),
                keys=self.draw(st.integers(0, 4)),
                xid=self.xid,
            )
        )

    def forget(self, oid: int, but: int = 0) -> None:
        """A table was told to all."""
        for top, own in self.own.items():
            if top != but:
                own.discard(oid)

    def row(self, oid: int) -> list[Any]:
        return [self.draw(values) for _ in range(self.widths[oid])]

    def change(self) -> None:
        oid = self.draw(st.sampled_from(OIDS))
        if oid not in self.widths or self.draw(st.integers(0, 9)) == 0:
            self.tell_relation(oid)
        old_kind = self.draw(st.sampled_from([b"K", b"O"]))
        op = self.draw(st.sampled_from("iiuUdtmOY"))
        if op == "i":
            self.send(insert(oid, *self.row(oid), xid=self.xid))
        elif op in "uU":
            old = self.row(oid) if op == "U" else None
            self.send(update(oid, self.row(oid), old, kind=old_kind, xid=self.xid))
        elif op == "d":
            self.send(delete(oid, self.row(oid), kind=old_kind, xid=self.xid))
        elif op == "t":
            named = self.draw(st.lists(st.sampled_from(sorted(self.widths)), max_size=4))
            self.send(truncate(*named, flags=self.draw(st.integers(0, 3)), xid=self.xid))
        elif op == "m":
            transactional = self.draw(st.booleans())
            prefix = self.draw(names)
            self.send(message(prefix, b"content", transactional=transactional, xid=self.xid))
        elif op == "O":
            self.send(b"O" + bytes(8) + string(self.draw(names)))
        else:
            self.send(b"Y" + self.xid + bytes(4) + string("public") + string(self.draw(names)))

    def transaction(self) -> None:
        final_lsn = self.draw(lsns)
        self.send(begin(final_lsn, self.draw(timestamps), self.draw(xids)))
        for _ in range(self.draw(st.integers(0, 8))):
            self.change()
        self.send(commit(final_lsn, self.draw(lsns), self.draw(timestamps)))

    def block(self) -> None:
        """A block of a streamed transaction, begun or in progress, with its subtransactions."""
        top = self.draw(st.sampled_from(STREAMED))
        if top in self.prepared:
            return
        outside, first = self.widths, top not in self.streams
        self.top, self.widths = top, self.streams.setdefault(top, {})
        self.own.setdefault(top, set())
        self.send(stream_start(top, first=first))
        for _ in range(self.draw(st.integers(0, 6))):
            self.xid = be(top + self.draw(st.integers(0, 2)))
            self.change()
        self.xid, self.top, self.widths = b"", 0, outside
        self.send(b"E")

    def preparing(self) -> None:
        """A transaction that is prepared: one that comes whole, or what came in blocks."""
        top, lsn = self.draw(st.sampled_from((*STREAMED, 40))), self.draw(lsns)
        if top in self.prepared:
            return
        self.prepared.add(top)
        if top in self.streams:
            self.send(prepare(top, lsn, letter=b"p"))
            return
        self.streams[top], self.own[top] = {}, set()
        self.send(begin_prepare(top, lsn))
        for _ in range(self.draw(st.integers(0, 6))):
            self.change()
        self.send(prepare(top, lsn))

    def ending(self) -> None:
        """The end of a streamed or prepared transaction, or of a subtransaction."""
        if not self.streams:
            return
        top = self.draw(st.sampled_from(sorted(self.streams)))
        sub = top + self.draw(st.integers(-1, 2))
        if sub < top:
            self.committed(top)
        elif top in self.prepared:
            self.send(rollback_prepared(top))
        else:
            self.send(stream_abort(top, sub))
        if sub <= top or top in self.prepared:
            self.prepared.discard(top)
            del self.streams[top], self.own[top]

    def committed(self, top: int) -> None:
        lsn, told, own = self.draw(lsns), self.streams[top], self.own[top]
        self.widths |= {oid: width for oid, width in told.items() if oid in own}
        send = commit_prepared if top in self.prepared else stream_commit
        for oid in own:
            self.forget(oid, but=top)
        self.send(send(top, lsn, self.draw(lsns), self.draw(timestamps)))


STREAMED = (10, 20, 30)


@st.composite
def streams(draw: Any) -> tuple[int, list[bytes | None]]:
    """Where a stream starts, and frames of transactions that come whole, in blocks or are prepared,
    with takes between and inside them."""
    stream = Stream(draw)
    for _ in range(draw(st.integers(1, 8))):
        made = [stream.transaction, stream.block, stream.preparing, stream.ending]
        draw(st.sampled_from(made))()
    if not stream.steps:
        stream.transaction()
    cut = draw(st.integers(0, 3))
    return draw(st.one_of(st.just(0), lsns)), stream.steps[: max(1, len(stream.steps) - cut)]


def run(decoder: ReferenceDecoder, steps: list[bytes | None]) -> list[Any]:
    """What the decoder says after each burst and at each take, up to the first error.

    Every other take leaves small streams where they are.
    """
    seen: list[Any] = []
    burst: list[bytes] = []
    keep = 100
    try:
        for step in [*steps, TAKE]:
            if step is not TAKE:
                burst.append(step)
                continue
            decoder.push(burst)
            burst = []
            seen.append((decoder.in_transaction, decoder.buffered_rows, decoder.buffered_bytes))
            seen.append((decoder.last_commit_lsn, plain(decoder.take(keep))))
            seen.append(decoder.prepared.releasable(1 << 60))
            keep = 100 - keep
    except (ProtocolError, SlotLostError):
        seen.append("refused")
    return seen


@given(streams())
@thorough
def test_any_valid_stream_decodes_alike(stream: tuple[int, list[bytes | None]]) -> None:
    start, steps = stream
    expected = run(ReferenceDecoder(start=start), steps)
    assert "refused" not in expected
    assert run(Decoder(start=start), steps) == expected


@given(streams(), st.data())
@thorough
def test_any_damaged_stream_decodes_alike_or_is_refused_by_both(
    stream: tuple[int, list[bytes | None]], data: st.DataObject
) -> None:
    _, steps = stream
    damaged = list(steps)
    frames = [i for i, step in enumerate(steps) if step is not TAKE]
    for at in data.draw(st.lists(st.sampled_from(frames), min_size=1, max_size=3)):
        damaged[at] = data.draw(damages(damaged[at] or b""))
    assert run(Decoder(), damaged) == run(ReferenceDecoder(), damaged)


LENGTHS = (-1, -(1 << 31), (1 << 31) - 1, (1 << 31) - 8, 0, 1, 2, 1000, 0x10000)


@st.composite
def damages(draw: Any, whole: bytes) -> bytes:
    """`whole` cut, lengthened, or with bytes, numbers or its order of parts changed."""
    way = draw(st.sampled_from(["cut", "more", "byte", "number", "splice"]))
    at = draw(st.integers(0, max(len(whole) - 1, 0)))
    if way == "cut":
        return whole[:at]
    if way == "more":
        return whole + draw(st.binary(min_size=1, max_size=5))
    if way == "byte":
        return whole[:at] + draw(st.binary(min_size=1, max_size=1)) + whole[at + 1 :]
    if way == "number":
        return whole[:at] + struct.pack(">i", draw(st.sampled_from(LENGTHS))) + whole[at + 4 :]
    return whole[:at] + whole[draw(st.integers(0, len(whole))) :]


@given(st.lists(st.binary(max_size=60).map(lambda rest: b"w" + bytes(24) + rest), max_size=5))
@thorough
def test_noise_is_refused_by_both(noise: list[bytes]) -> None:
    assert run(Decoder(), [*noise]) == run(ReferenceDecoder(), [*noise])
