"""Jobs know the machine that has their files; pictures that no tower has looked at are found at once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("place", sa.String(length=100), nullable=False, server_default=""))
    where = sa.text("vector IS NULL")
    op.create_index("pictures_unseen", "pictures", ["id"], sqlite_where=where, postgresql_where=where)
