"""The LLMServe server: `uvicorn server.app:app`, or `server` once the folder is installed. Listens on PORT, else 8000."""

from inferencegym.envs.openenv.app import make_app
from inferencegym.envs.openenv.serve import serve

app = make_app("llmserve")


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    serve("llmserve")


if __name__ == "__main__":
    main()
