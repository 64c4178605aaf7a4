"""What machines cost and what is in them: the tables beside this file, and a user's own. No torch, no Ray."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.node_types import NodeType
from rllava.errors import UserError

TABLE = Path(__file__).with_name("prices.toml")


@dataclass(frozen=True)
class Prices:
    """A dated table.

    Attributes:
        usd_per_hour: by instance or node type, then by market (on_demand, spot).
        source: where it is from and when it was read, for people.
        own: whether the user gave it: then it has to name everything.
    """

    usd_per_hour: Mapping[str, Mapping[str, float]]
    source: str
    own: bool = False

    def of(self, kind: NodeType) -> float | None:
        """USD an hour of one node; None if the table has none."""
        market = "spot" if kind.spot else "on_demand"
        for name in (kind.name, kind.instance):
            found = self.usd_per_hour.get(name, {}).get(market)
            if found is not None:
                return found
        return None


def read_prices(path: str | None = None) -> Prices:
    """Reads a table of prices.

    Args:
        path: the user's own; None: the one beside this file.

    Raises:
        UserError: if it cannot be read, or a price is no number above 0.
    """
    content = _read(Path(path).expanduser() if path else TABLE, "--prices")
    found: dict[str, dict[str, float]] = {}
    instances = content.get("instances", {})
    for name, entry in instances.items() if isinstance(instances, dict) else ():
        if not isinstance(entry, dict):
            raise UserError(f'--prices {path}: instances.{name} is no table; write [instances."{name}"]')
        found[name] = {market: entry[market] for market in ("on_demand", "spot") if market in entry}
        for market, price in found[name].items():
            if isinstance(price, bool) or not isinstance(price, int | float) or not price >= 0:
                raise UserError(f"--prices {path}: {name} has {market} = {price!r}; give USD per hour, e.g. 2.24")
    if not found:
        raise UserError(f'--prices {path}: no table of instances; write [instances."g6e.2xlarge"] and spot = 1.36')
    source = f"{content.get('source', path)}, read {content['read']}" if "read" in content else str(path)
    return Prices(found, source, own=path is not None)


def check_prices(prices: Prices, kinds: Sequence[NodeType]) -> None:
    """Refuses a table of the user's own that leaves out a node type.

    Raises:
        UserError: naming all that it lacks.
    """
    lacking = [kind for kind in kinds if kind.most and prices.of(kind) is None]
    if prices.own and lacking:
        wanted = ", ".join(
            f"{kind.name} ({kind.instance or 'no instance type'}, {'spot' if kind.spot else 'on_demand'})"
            for kind in lacking
        )
        one = lacking[0]
        raise UserError(
            f"--prices {prices.source}: no price for {len(lacking)} node type{'s' if len(lacking) > 1 else ''}: "
            f'{wanted}; add e.g. [instances."{one.instance or one.name}"] with '
            f"{'spot' if one.spot else 'on_demand'} = USD per hour"
        )


def _read(path: Path, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read ({error.strerror}); give a TOML file like {TABLE}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {path} is no TOML ({error}); see {TABLE}") from error
