"""The dashboard's pure modules, run by node: every module parses, charts keep every spike, figures read as they should, and frames survive any cut."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

import inferencegym.web

STATIC = Path(inferencegym.web.__file__).parent / "static"
MODULES = sorted(path for path in STATIC.rglob("*.js") if "vendor" not in path.parts)
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(NODE is None, reason="there is no node: apt-get install nodejs")


def node(script: str, *arguments: str) -> Any:
    """What a module script writes, read as JSON; `STATIC` in it is the folder of modules."""
    text = script.replace("STATIC", STATIC.as_uri())
    done = subprocess.run(
        [NODE or "node", "--input-type=module", "-", *arguments], input=text, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_module_parses_and_finds_what_it_imports():
    assert len(MODULES) > 20
    wrong = {}
    for path in MODULES:
        done = subprocess.run(
            [NODE or "node", "--check", "--input-type=module", "-"],
            input=path.read_text(encoding="utf-8"), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        if done.returncode:
            wrong[path.name] = done.stderr
    assert not wrong
    # Each name that a module imports from a neighbour is one that the neighbour exports.
    missing = node(
        """
        import { readFileSync } from "node:fs";
        const exported = (text) => new Set([...text.matchAll(/^export (?:async )?(?:function|class|const|let) (\\w+)/gm)].map((m) => m[1])
          .concat([...text.matchAll(/^export \\{([^}]+)\\}/gm)].flatMap((m) => m[1].split(",").map((name) => name.trim()))));
        const found = [];
        for (const path of process.argv.slice(2)) {
          for (const [, names, from] of readFileSync(path, "utf8").matchAll(/^import \\{([^}]+)\\} from "(\\.[^"]+)"/gm)) {
            const there = exported(readFileSync(new URL(from, `file://${path}`), "utf8"));
            for (const name of names.split(",").map((one) => one.trim().split(" as ")[0])) if (!there.has(name)) found.push(`${path}: ${name} from ${from}`);
          }
        }
        console.log(JSON.stringify(found));
        """,
        *map(str, MODULES),
    )
    assert missing == []


def test_thinning_keeps_every_spike_and_the_order_of_time():
    told = node(
        """
        import { firstAt, thin } from "STATIC/thin.js";
        const n = 10000, x = Float64Array.from({ length: n }, (_, k) => k), y = new Float32Array(n), gap = new Float32Array(n).fill(NaN);
        y[1234] = 7; y[8765] = -3; gap[5000] = 1;
        const [xs, ys, gs, short] = thin(x, [y, gap, y.subarray(0, 1300)], 0, n - 1, 200);
        const all = thin(x, [y], 1230, 1240, 200);
        console.log(JSON.stringify({
          size: xs.length, ascending: xs.every((v, k) => k === 0 || v >= xs[k - 1]), high: Math.max(...ys), low: Math.min(...ys),
          where: xs[ys.indexOf(7)], kept: gs.filter((v) => v !== null), short: short.filter((v) => v !== null).length, ends: [xs[0], xs.at(-1)],
          all: [all[0], all[1]], at: [firstAt(x, -1), firstAt(x, 17), firstAt(x, 17.5), firstAt(x, 1e9)],
        }));
        """
    )
    assert told["size"] <= 400
    assert told["ascending"]
    assert (told["high"], told["low"]) == (7, -3)
    assert abs(told["where"] - 1234) <= 50, "a spike stays where it was, to a pixel"
    assert set(told["kept"]) == {1}, "NaN is a gap, the one value in it is not lost"
    assert 0 < told["short"] < told["size"] / 5, "a series that ends sooner ends there"
    assert told["ends"] == [0, 9999]
    xs, ys = told["all"]
    assert xs[0] <= 1230, "what fits is shown whole, with a neighbour on either side for the lines to the edge"
    assert xs[-1] >= 1240
    assert ys[xs.index(1234)] == 7
    assert told["at"] == [0, 17, 18, 10000]


#: What modules say to what figures.
SAID = {
    "number(NaN)": "–",
    "number(null)": "–",
    "number(-Infinity)": "−∞",
    "number(12345)": "12,345",
    "number(0.87164)": "0.8716",
    "number(-0.5)": "−0.5",
    "number(2.44e-5)": "2.44 × 10⁻⁵",
    "number(-1.5e-12)": "−1.50 × 10⁻¹²",
    "number(1234567)": "1.235M",
    "percent(0.9061)": "90.6 %",
    "duration(0.85)": "850 ms",
    "duration(200)": "3 min 20 s",
    "duration(3600)": "1 h",
    "duration(-90)": "−1 min 30 s",
    "withUnit(12, 'ms')": "12 ms",
    "withUnit(0.5, '1')": "0.5",
    "words('p99_ttft_ms')": "p99 TTFT ms",
    "heading('slo')": "SLO",
    "heading('best_static')": "Best static",
}


def test_figures_in_words():
    script = 'import { duration, heading, number, percent, withUnit, words } from "STATIC/format.js"; console.log(JSON.stringify([%s]));'
    assert dict(zip(SAID, node(script % ", ".join(SAID)), strict=True)) == SAID


def frame(header: dict[str, Any], payload: bytes = b"") -> bytes:
    """A frame as web/frames.py makes it."""
    head = json.dumps(header).encode()
    return struct.pack("<II", len(head), len(payload)) + head + payload


READ = """
import { frames } from "STATIC/api.js";
globalThis.sessionStorage = { getItem: () => null };
const bytes = Uint8Array.from(JSON.parse(process.argv[2]));
async function read(pieces) {
  globalThis.fetch = async () => new Response(new ReadableStream({ start(c) { for (const one of pieces) c.enqueue(one); c.close(); } }));
  const seen = [];
  await frames("x", (header, payload) => seen.push([header, [...new Float32Array(payload)]]));
  return seen;
}
"""


def test_frames_are_the_same_wherever_the_network_cuts_them():
    """At every byte in two, and byte by byte."""
    sent = [
        ({"frame": 0, "type": "state", "message": "läuft"}, []),
        ({"frame": 1, "rows": 3}, [1.5, -2.0, 0.25]),
        ({"type": "alive"}, []),
    ]
    data = b"".join(frame(header, struct.pack(f"<{len(values)}f", *values)) for header, values in sent)
    told = node(
        READ + """
        const whole = JSON.stringify(await read([bytes]));
        const differ = [];
        for (let at = 1; at < bytes.length; at++) if (JSON.stringify(await read([bytes.slice(0, at), bytes.slice(at)])) !== whole) differ.push(at);
        if (JSON.stringify(await read([...bytes].map((one) => Uint8Array.of(one)))) !== whole) differ.push("each");
        console.log(JSON.stringify({ whole: JSON.parse(whole), differ }));
        """,
        json.dumps(list(data)),
    )  # fmt: skip
    assert told == {"whole": [[header, values] for header, values in sent], "differ": []}


def test_a_stream_that_ends_within_a_frame_is_a_lost_connection():
    data = frame({"frame": 0}, bytes(8))
    told = node(
        READ + """
        const said = new Set();
        for (let left = 1; left < bytes.length; left++) await read([bytes.slice(0, left)]).then(() => said.add("nothing"), (error) => said.add(`${error.status}: ${error.message}`));
        console.log(JSON.stringify([...said]));
        """,
        json.dumps(list(data)),
    )  # fmt: skip
    assert len(told) == 1
    assert told[0].startswith("0: The connection was lost")
