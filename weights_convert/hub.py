"""A repository of the Hugging Face Hub as a directory: pinned to a commit, weights as safetensors only."""

from __future__ import annotations

import re
from pathlib import Path

from fvjax import errors

# of the repository's top folder; never pickles, never code
WANTED = ["*.safetensors", "*.json", "*.model", "merges.txt", "vocab.txt"]


def download(repo: str, revision: str | None) -> tuple[Path, str]:
    """Download a repository -> (its directory in the Hub's cache, commit).

    Files that are there already are not downloaded again, one that breaks off goes on where it was. ``revision`` is a
    commit hash; None means the current one, which is printed. What was downloaded completely before needs no network
    if ``revision`` is given.

    Raises ValueError: no commit hash; no such repository or commit; no access; no network.
    """
    import huggingface_hub as hub
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if revision is not None and not re.fullmatch("[0-9a-f]{40}", revision):
        raise ValueError(f"--revision={revision} is not a commit hash (40 hex digits); without it the current is taken")
    try:
        if revision is None:
            revision = hub.HfApi().model_info(repo).sha
            print(f"{repo}: --revision={revision}", flush=True)
        with errors.naming(HF_HUB_CACHE):
            path = hub.snapshot_download(repo, revision=revision, allow_patterns=WANTED, ignore_patterns=["*/*"])
    except GatedRepoError:
        told = f"{repo} is open to approved accounts only: ask on its page, then `hf auth login`"
        raise ValueError(told) from None
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = f"commit {revision}" if isinstance(error, RevisionNotFoundError) else "repository"
        raise ValueError(f"{repo}: there is no such {what} on the Hub, or it is private (`hf auth login`)") from None
    except Exception as error:  # of several libraries
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's
        cached = "is not wholly in the cache" if revision else "--revision=COMMIT would take what is in the cache"
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"{repo} is no directory here, the Hub gave no answer, and {cached} ({why})") from error
    return Path(path), str(revision)
