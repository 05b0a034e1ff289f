"""`snapshot`: the files of a Hugging Face hub model on this machine."""

from pathlib import Path

try:
    import huggingface_hub
except ImportError:  # the extra `hub`; `snapshot` says so
    huggingface_hub = None

FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "*.safetensors",
    "model.safetensors.index.json",
]


def snapshot(repository: str, allow_download: bool) -> Path:
    """The folder of `repository` in the hub's cache, filled from the network if allowed."""
    if huggingface_hub is None:
        raise ValueError(
            f"{repository!r} looks like a hub id: pip install 'parallel_decode[hub]' to use one"
        )
    try:
        folder = huggingface_hub.snapshot_download(
            repository, allow_patterns=FILES, local_files_only=not allow_download
        )
    except Exception as error:  # the hub raises a dozen unrelated kinds
        if allow_download:
            raise ValueError(
                f"the hub model {repository!r} can't be fetched ({type(error).__name__}: {error}); "
                "without a network, copy the model's folder here and give its path"
            ) from error
        raise ValueError(
            f"the hub model {repository!r} is not in the local cache: pass allow_download=True to "
            "fetch it, or give the path of a folder that holds it"
        ) from error
    return Path(folder)
