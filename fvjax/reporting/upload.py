"""Upload an exported model with its card to the Hugging Face Hub, after showing what would be uploaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fvjax.reporting.model_card import UNKNOWN_LICENSE

CARD = "README.md"
SUFFIXES = (".safetensors", ".json", ".model", ".txt", ".jinja", ".md")  # what an export writes: no code, no pickles


def uploaded_files(folder: Path) -> list[Path]:
    """Return the files of an exported folder that are uploaded; others, folders and links stay here."""
    return sorted(
        file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file() and not file.is_symlink()
    )


def preview(folder: Path, repository: str) -> str:
    """Describe what an upload would do: the files with their sizes, what stays here, and the card."""
    _check_folder(folder, repository)
    files = uploaded_files(folder)
    width = max(len(file.name) for file in files)
    lines = [f"{repository} would get these files (a new repository is private):"]
    lines += [f"  {file.name:<{width}}  {file.stat().st_size:>15,} bytes" for file in files]
    lines.append(f"  {'in all':<{width}}  {sum(file.stat().st_size for file in files):>15,} bytes")
    if others := sorted(each.name for each in folder.iterdir() if each not in files):
        lines.append(f"  not uploaded: {', '.join(others)}")
    return "\n".join([*lines, "", (folder / CARD).read_text(encoding="utf-8")])


def check_card(folder: Path) -> None:
    """Raise ValueError if the card of an exported folder lacks what a public model must say."""
    from huggingface_hub import metadata_load

    try:
        header = metadata_load(folder / CARD) or {}
    except Exception as error:  # yaml and huggingface_hub have an exception class for each kind of mistake
        raise ValueError(f"{folder / CARD}: its header is not YAML ({' '.join(str(error).split())[:200]})") from error
    lacking = []
    if header.get("license", UNKNOWN_LICENSE) == UNKNOWN_LICENSE:
        lacking.append("license (--license=…)")
    if (folder / "adapter_config.json").is_file() and not header.get("base_model"):
        lacking.append("base_model, which adapters need (--base-model=OWNER/NAME)")
    if not header.get("library_name"):
        lacking.append("library_name")
    if not header.get("model-index"):
        lacking.append("figures (model-index): evaluate the step that is exported")
    if lacking:
        raise ValueError(f"{folder / CARD} lacks {'; '.join(lacking)}; export again with them, or write them into it")


def push(folder: Path, repository: str) -> str:
    """Upload an exported folder; return the address of the commit. The Hub's own login or HF_TOKEN is used.

    A repository that does not exist is created as a private one.

    Raises ValueError: the card lacks something, no such name, no access, or the Hub does not answer.
    """
    import huggingface_hub as hub

    _check_folder(folder, repository)
    check_card(folder)
    api: Any = hub.HfApi()
    names = [file.name for file in uploaded_files(folder)]
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=str(folder),
            allow_patterns=names,
            commit_message="Model exported by fvjax, with its card",
        )
    except Exception as error:  # several libraries raise several types
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"{repository}: not uploaded, `hf auth login` gives access ({reason})") from error
    return str(commit.commit_url)


def _check_folder(folder: Path, repository: str) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"--push-to-hub={repository}: give OWNER/NAME")
    if not (folder / CARD).is_file() or not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder}: no exported model with its card ({CARD}) is here")
