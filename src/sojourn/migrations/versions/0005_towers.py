"""Places of pictures are told apart by the tower that gave them: another one looks at all of them anew."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("pictures", sa.Column("tower", sa.String(length=32), nullable=False, server_default=""))
    op.drop_index("pictures_unseen", "pictures")
    op.create_index("pictures_tower", "pictures", ["tower", "id"])
