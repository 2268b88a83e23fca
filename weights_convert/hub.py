"""Download a repository of the Hugging Face Hub: pinned to a commit, weights as safetensors only."""

from __future__ import annotations

import re
from pathlib import Path

from fvjax import errors

# Files of the repository's top folder that are downloaded: never pickles, never code.
WANTED = ["*.safetensors", "*.json", "*.model", "merges.txt", "vocab.txt", "chat_template.jinja"]


def download(repo: str, revision: str | None) -> tuple[Path, str]:
    """Download a repository -> (its directory in the Hub's cache, commit).

    Files in the cache are not downloaded again, and an interrupted download is continued. ``revision`` is a commit
    hash; None means the current one, which is printed. With ``revision``, a complete download needs no network.

    Raises ValueError: not a commit hash; no such repository or commit; no access; no network.
    """
    import huggingface_hub as hub
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if revision is not None and not re.fullmatch("[0-9a-f]{40}", revision):
        raise ValueError(
            f"--revision={revision} is not a commit hash (40 hex digits); leave it out for the current one"
        )
    try:
        if revision is None:
            revision = hub.HfApi().model_info(repo).sha
            print(f"{repo}: --revision={revision}", flush=True)
        with errors.naming(HF_HUB_CACHE):
            path = hub.snapshot_download(repo, revision=revision, allow_patterns=WANTED, ignore_patterns=["*/*"])
    except GatedRepoError:
        raise ValueError(
            f"{repo} needs an approved account: request access on its page, then `hf auth login`"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = f"commit {revision}" if isinstance(error, RevisionNotFoundError) else "repository"
        raise ValueError(f"{repo}: no such {what} on the Hub, or it is private (`hf auth login`)") from None
    except Exception as error:  # several libraries raise several types
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the disk
        cached = "the cache is incomplete" if revision else "only with --revision=COMMIT is the cache used"
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"{repo} is not a directory here, the Hub did not answer, and {cached} ({reason})") from error
    return Path(path), str(revision)
