#!/bin/sh
# Starts one environment's server on port 7860; arguments are those of `inferencegym env`; or the gateway, if the first one is `serve`. Kernels
# that the image compiled are copied to where Numba may write; without them they are compiled anew, which takes a minute.
set -eu
if [ ! -d "$NUMBA_CACHE_DIR" ] && [ -d /opt/numba ]; then
    cp -r /opt/numba "$NUMBA_CACHE_DIR" || echo "kernels will be compiled anew: $NUMBA_CACHE_DIR cannot be written" >&2
fi
if [ "${1:-}" = serve ]; then
    exec inferencegym "$@"
fi
exec inferencegym env --host 0.0.0.0 --port 7860 "$@"
