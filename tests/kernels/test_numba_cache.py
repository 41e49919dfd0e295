import resource

import pytest
from numba.core import config

from fast_train.kernels.numba_cache import compiled


def _add_one(number):
    return number + 1


@pytest.fixture
def folder(tmp_path):
    # Numba reads its variables anew at each compilation, if one of them has changed.
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("NUMBA_CACHE_DIR", str(tmp_path))
        config.reload_config()
        yield tmp_path
    config.reload_config()


def _from_disk():
    """Whether the code was there already."""
    function = compiled(_add_one)
    assert function(1) == 2
    return sum(function.stats.cache_hits.values()) == 1


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-20], lambda data: bytes(len(data))], ids=["empty", "cut", "zeros"]
)
def test_code_whose_file_is_torn_is_compiled_and_written_anew(folder, kind, damage):
    assert not _from_disk()
    assert _from_disk()
    (file,) = folder.rglob(f"*.{kind}")
    file.write_bytes(damage(file.read_bytes()))
    assert not _from_disk()
    assert _from_disk()


def test_where_its_code_finds_no_room_a_function_runs_all_the_same_and_the_folder_is_named(folder):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
        with pytest.warns(UserWarning, match=f"{folder}.*File too large; .*make room, or set NUMBA_CACHE_DIR"):
            assert compiled(_add_one)(1) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not _from_disk()
    assert _from_disk()


def test_where_no_folder_takes_its_code_a_function_is_compiled_all_the_same(monkeypatch):
    monkeypatch.setattr("numba.core.caching.CompileResultCacheImpl._locator_classes", [])
    assert compiled(_add_one)(1) == 2
