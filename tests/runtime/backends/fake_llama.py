#!/usr/bin/env python3
"""Stands in for llama-server in tests: its options, health, slots and metrics; more than 4 slots, and it ends; text comes while GO is there."""

import argparse
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
for name in ("-m", "--host", "-a", "-c", "-ngl"):
    parser.add_argument(name)
parser.add_argument("--port", type=int)
parser.add_argument("-np", type=int)
parser.add_argument("--metrics", action="store_true")
parser.add_argument("--slots", action="store_true")
options = parser.parse_args()
if options.np > 4:
    sys.exit("no memory for so many slots")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body, kind="application/json"):
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        slots = [{"id": i, "is_processing": False} for i in range(options.np)]
        props = {"total_slots": options.np, "default_generation_settings": {"n_ctx": int(options.c) // options.np}}
        models = {"data": [{"id": options.a}]}
        found = {"/props": props, "/slots": slots, "/v1/models": models, "/health": {"status": "ok"}}
        if self.path == "/metrics":
            self.answer(b"llamacpp:requests_processing 1\nllamacpp:requests_deferred 2\n", "text/plain")
        else:
            self.answer(json.dumps(found[self.path]).encode())

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        try:
            while not os.path.exists(options.m + ".go"):
                self.say({"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]})
                time.sleep(0.02)
            self.say({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            pass
        self.close_connection = True

    def say(self, event):
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()


ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()
