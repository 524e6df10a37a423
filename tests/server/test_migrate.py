"""The tables of a database, made and changed the same way in SQLite and PostgreSQL."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

from edge_sdk.errors import ConfigError, StorageError
from server.storage import migrate, tables
from server.storage.sql_store import open_store
from tests.server.store_rows import TASK, fill
from tests.server.tasks import in_parallel


def test_migrations_build_exactly_the_tables_the_code_expects(store, address):
    plain = create_engine(address)
    with plain.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []
    plain.dispose()


def test_the_newest_migration_by_name_is_the_last_by_their_order():
    heads = ScriptDirectory(str(migrate._SCRIPTS)).get_heads()
    assert heads == [migrate._newest()]


def test_a_server_that_is_started_again_does_not_import_alembic(store, address):
    code = (
        "import sys\n"
        "from server.storage.sql_store import open_store\n"
        f"open_store({address!r}).close()\n"
        "print('alembic' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_opening_from_several_threads_at_once_migrates_once(address):
    opened = in_parallel([lambda: open_store(address)] * 4)
    assert [store for store in opened if isinstance(store, Exception)] == []
    for store in opened:
        store.close()


def test_two_processes_that_start_at_once_both_find_the_tables(address):
    code = f"from server.storage.sql_store import open_store; open_store({address!r}).close()"
    started = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=60)[1] for process in started] == ["", ""]
    assert [process.returncode for process in started] == [0, 0]


def test_a_migration_that_fails_half_way_leaves_nothing_of_itself(
    store, address, tmp_path, monkeypatch
):
    fill(store)
    scripts = tmp_path / "migrations"
    shutil.copytree(migrate._SCRIPTS, scripts)
    with store.read() as tx:
        head = tx._connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    (scripts / "versions" / "9999_broken.py").write_text(
        "import sqlalchemy as sa\n"
        "from alembic import op\n"
        "revision = '9999'\n"
        f"down_revision = {head!r}\n"
        "def upgrade():\n"
        "    op.create_table('half_done', sa.Column('x', sa.Integer))\n"
        "    op.execute('UPDATE tasks SET seed = 1')\n"
        "    op.execute('SELECT nonsense FROM nowhere')\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(migrate, "_SCRIPTS", scripts)
    with pytest.raises(StorageError, match="nowhere"):
        open_store(address)
    monkeypatch.undo()
    again = open_store(address)
    with again.read() as tx:
        assert tx.task("tiny") == TASK
    with pytest.raises(StorageError, match="half_done"), again.read() as tx:
        tx._connection.execute(text("SELECT * FROM half_done"))
    again.close()


def test_a_database_of_a_newer_release_is_refused(store, address):
    with store.write() as tx:
        tx._connection.execute(text("UPDATE alembic_version SET version_num = 'later'"))
    with pytest.raises(ConfigError, match="newer"):
        open_store(address)
