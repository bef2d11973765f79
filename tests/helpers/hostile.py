"""What a text or a name may hold that a page must only ever show."""

from __future__ import annotations

__all__ = ["EVIL"]

_RUN = "document.documentElement.dataset.hacked=1"

EVIL = f"</script><img src=x onerror={_RUN}><script>{_RUN}</script>\"'&$x$"
"""Ends a data block, and runs if any of it is taken as markup: the root then has data-hacked."""
