"""Search: one interface to exact, in-process and server indexes of protected galleries."""

from ppreid_plugin.search.building import build_index
from ppreid_plugin.search.deleting import delete_everywhere, delete_rows
from ppreid_plugin.search.exact import ExactIndex
from ppreid_plugin.search.faiss_index import FaissIndex
from ppreid_plugin.search.hits import Hits, merged
from ppreid_plugin.search.index import INDEXES, GalleryIndex, open_index, register_index
from ppreid_plugin.search.milvus_index import MilvusIndex
from ppreid_plugin.search.people import search_people
from ppreid_plugin.search.storage import STORAGES, RowStorage, register_storage

__all__ = [
    "INDEXES",
    "STORAGES",
    "ExactIndex",
    "FaissIndex",
    "GalleryIndex",
    "Hits",
    "MilvusIndex",
    "RowStorage",
    "build_index",
    "delete_everywhere",
    "delete_rows",
    "merged",
    "open_index",
    "register_index",
    "register_storage",
    "search_people",
]
