"""The types of requests, chunks and replies, for programs that check theirs."""

from polargrid_local.api.params import *  # noqa: F403
from polargrid_local.api.types import *  # noqa: F403
