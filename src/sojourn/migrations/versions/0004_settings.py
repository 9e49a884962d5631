"""What somebody draws with where they do not say."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("owners", sa.Column("settings", sa.JSON(), nullable=True))
