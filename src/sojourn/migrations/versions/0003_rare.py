"""What is rare among many pictures is found without walking through all of them: trash, hidden, a package, a style."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    gone = sa.text("trashed IS NOT NULL")
    op.create_index("pictures_trashed", "pictures", ["owner", "id"], sqlite_where=gone, postgresql_where=gone)
    op.create_index(
        "pictures_hidden", "pictures", ["owner", "id"],
        sqlite_where=sa.text("hidden IS 1"), postgresql_where=sa.text("hidden IS true"),
    )  # fmt: skip
    op.create_index("pictures_model", "pictures", ["owner", "model", "id"])
    op.create_index("pictures_style", "pictures", ["owner", "style", "id"])
