"""``retro migrate``: a config of an earlier release, rewritten in the keys of this one."""

from __future__ import annotations

from pathlib import Path

import yaml

from retro.artifacts import write_atomically
from retro.config import ConfigError, load_config, parse_config
from retro.config.load import read_tree
from retro.config.migration import migrated


def migrate_config(path: Path) -> None:
    """Rewrite a config file, or the config of a run folder, and keep the old file beside it as ``*.before``.

    Raises:
        ConfigError: if the result would not be a valid config, or an old file is kept there already. Nothing is
            changed then.
    """
    file = path / "config.yaml" if path.is_dir() else path
    tree = read_tree(file)
    new, changes = migrated(tree)
    if not changes:
        load_config(file)
        print(f"{file}: is up to date")
        return
    parse_config(new, str(file))
    before = file.with_name(f"{file.name}.before")
    if before.exists():
        raise ConfigError(f"{before}: is there already, and would be replaced by {file}: move it away")
    before.write_bytes(file.read_bytes())
    write_atomically(file, yaml.safe_dump(new, sort_keys=False, allow_unicode=True))
    for change in changes:
        print(f"  {change.what}")
    print(f"{file}: rewritten; the old file, with its comments, is {before}")
