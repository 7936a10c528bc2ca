"""What a run costs besides FLOPs: energy, carbon and money, measured where a counter is."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llmtrain.spec.check import check, check_between, check_name, check_positive
from llmtrain.spec.record import RunRecord, Spent

JOULES_PER_KWH = 3.6e6
CPU_WATTS_PER_THREAD = 4.0
"""What codecarbon 3.3.2 assumes of a CPU whose power nothing tells."""

# Grams of CO2e per kWh of the grid. Countries: 2023 (ARE, ISL, ISR: 2022), Our World in Data and
# Ember as compiled in codecarbon 3.3.2 (global_energy_mix.json); world: IEA 2019, as given there.
GRID = {
    "world": 475.0,
    "ARE": 561.1, "AUS": 548.7, "AUT": 110.8, "BEL": 138.1, "BRA": 98.3, "CAN": 170.0,
    "CHE": 34.8, "CHN": 582.3, "DEU": 381.0, "DNK": 151.7, "ESP": 174.1, "FIN": 79.2,
    "FRA": 56.0, "GBR": 237.6, "IND": 713.4, "IRL": 290.8, "ISL": 27.7, "ISR": 582.9,
    "ITA": 330.7, "JPN": 485.4, "KOR": 430.6, "MEX": 507.2, "NLD": 267.6, "NOR": 30.1,
    "POL": 661.9, "SGP": 470.8, "SWE": 40.7, "TWN": 642.4, "USA": 369.5, "ZAF": 707.7,
}  # fmt: skip

# Rated board power in watts, from the makers' data sheets; the first name found in the device's.
RATED_WATTS = {
    "H200": 700.0,
    "H100 PCIe": 350.0,
    "H100": 700.0,
    "A100-PCIE": 250.0,
    "A100 80GB PCIe": 300.0,
    "A100": 400.0,
    "L40S": 350.0,
    "A10G": 300.0,
    "RTX 4090": 450.0,
    "RTX 3090": 350.0,
    "V100": 300.0,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class BillConfig:
    """What energy, carbon and money are counted by."""

    region: str
    """Grid: 'world' or a country's ISO code of three letters, as in FRA."""
    grams_per_kwh: float | None
    """CO2e of a kWh in grams; null takes the region's yearly mean."""
    pue: float
    """Energy of the whole site over the energy of its computers, at least 1."""
    device_watts: float | None
    """Power of one device under load, where no counter measures it; null takes its rated power."""
    price_per_hour: float | None
    """Price of one device (a GPU, or one CPU worker) for an hour; null leaves money out."""
    currency: str
    """What the price is in."""
    assumed_mfu: float | None
    """Share of runtime.peak_tflops that a plan counts on where no finished run tells the speed."""

    def __post_init__(self) -> None:
        """Refuse unknown regions and numbers below what they can be."""
        check(
            self.region in GRID or self.grams_per_kwh is not None,
            f"bill.region={self.region!r} is not among {', '.join(GRID)}; set bill.grams_per_kwh",
        )
        check_between("bill.pue", self.pue, 1.0, 10.0)
        if self.grams_per_kwh is not None:
            check_between("bill.grams_per_kwh", self.grams_per_kwh, 0.0, 5000.0)
        if self.device_watts is not None:
            check_positive("bill.device_watts", self.device_watts)
        if self.price_per_hour is not None:
            check_between("bill.price_per_hour", self.price_per_hour, 0.0, 1e6)
        check_name("bill.currency", self.currency)
        if self.assumed_mfu is not None:
            check_between("bill.assumed_mfu", self.assumed_mfu, 0.001, 1.0)

    @property
    def grid(self) -> float:
        """Grams of CO2e per kWh."""
        return GRID[self.region] if self.grams_per_kwh is None else self.grams_per_kwh


PLAIN = BillConfig(
    region="world",
    grams_per_kwh=None,
    pue=1.0,
    device_watts=None,
    price_per_hour=None,
    currency="USD",
    assumed_mfu=None,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BillChanges:
    """What a reader counts otherwise than the runs' own configuration; null keeps theirs."""

    region: str | None = None
    """Grid: 'world' or a country's ISO code of three letters, as in FRA."""
    grams_per_kwh: float | None = None
    """CO2e of a kWh in grams."""
    pue: float | None = None
    """Energy of the whole site over the energy of its computers."""
    device_watts: float | None = None
    """Power of one device under load, for runs that no counter measured."""
    price_per_hour: float | None = None
    """Price of one device for an hour."""
    currency: str | None = None
    """What the price is in."""

    def __post_init__(self) -> None:
        """Refuse what no run can be counted by."""
        self.applied(PLAIN)

    def applied(self, config: BillConfig) -> BillConfig:
        """Return `config` with these changes; a region brings its own grid. Raises ConfigError."""
        given = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        if "region" in given:
            given.setdefault("grams_per_kwh", None)
        return dataclasses.replace(config, **given)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bill:
    """Energy, carbon and money of one run or of several."""

    device_hours: float
    kwh: float | None
    """At the site: the devices' energy times PUE; null where nothing tells the power."""
    co2e_kg: float | None
    money: float | None
    """Null where no price is set."""
    sources: tuple[str, ...]
    """Where the energy comes from: nvml, rapl (counters), estimated, none."""

    @property
    def estimated(self) -> bool:
        """Whether any part of the energy is time and rated power, no counter's reading."""
        return "estimated" in self.sources

    def times(self, factor: float) -> "Bill":
        """Return the bill of `factor` times as much of the same."""

        def scaled(value: float | None) -> float | None:
            return None if value is None else value * factor

        return Bill(
            device_hours=self.device_hours * factor,
            kwh=scaled(self.kwh),
            co2e_kg=scaled(self.co2e_kg),
            money=scaled(self.money),
            sources=self.sources,
        )

    @property
    def mark(self) -> str:
        """What stands before every number that comes from the energy."""
        if not self.estimated:
            return "measured"
        return "estimated" if len(self.sources) == 1 else "partly estimated"


def rated_watts(hardware: Mapping[str, str]) -> float | None:
    """Return the rated power of one device of a record's `hardware`; None for an unknown GPU."""
    gpu = hardware.get("gpu")
    if gpu is None:
        return CPU_WATTS_PER_THREAD * float(hardware.get("threads", "1"))
    return next((watts for name, watts in RATED_WATTS.items() if name in gpu), None)


def estimated_joules(
    seconds: float, config: BillConfig, hardware: Mapping[str, str]
) -> float | None:
    """Return time x devices x power, as bill.device_watts or the rating has it; None for neither.

    It is the devices' own energy, before PUE.
    """
    watts = config.device_watts or rated_watts(hardware)
    return None if watts is None else seconds * float(hardware.get("n_devices", "1")) * watts


def bill_for(
    seconds: float,
    config: BillConfig,
    hardware: Mapping[str, str],
    *,
    joules: float | None = None,
    source: str = "none",
) -> Bill:
    """Return the bill of `seconds` of wall time on `hardware`, with the joules where measured.

    Without them the energy is time x devices x power, and its source reads 'estimated'.
    """
    device_seconds = seconds * float(hardware.get("n_devices", "1"))
    if joules is None:
        joules = estimated_joules(seconds, config, hardware)
        source = "none" if joules is None else "estimated"
    kwh = None if joules is None else joules / JOULES_PER_KWH * config.pue
    price = config.price_per_hour
    return Bill(
        device_hours=device_seconds / 3600.0,
        kwh=kwh,
        co2e_kg=None if kwh is None else kwh * config.grid * 1e-3,
        money=None if price is None else price * device_seconds / 3600.0,
        sources=(source,),
    )


def bill_of(run: RunRecord | Spent, config: BillConfig) -> Bill:
    """Return the bill of a run, done or so far: the counter's joules, or an estimate by its time.

    An estimate that it holds is made anew where bill.device_watts says what to make it from.
    """
    again = run.energy_source == "estimated" and config.device_watts is not None
    return bill_for(
        sum(run.seconds.values()),
        config,
        run.hardware,
        joules=None if again else run.energy_j,
        source=run.energy_source,
    )


def own_share(record: RunRecord) -> float:
    """Return the share of its FLOPs and tokens that a run executed itself: 1, but of a branch."""
    return record.flops_spent / record.flops[record.flops_convention]


def joules_per_token(record: RunRecord) -> float | None:
    """Return the joules over the tokens that the run itself trained on; None where unknown."""
    if record.energy_j is None:
        return None
    return record.energy_j / (record.n_tokens * own_share(record))


def total(bills: Iterable[Bill]) -> Bill:
    """Return the sum; energy is unknown where one part's is, and so is money."""
    parts = list(bills)
    sources = tuple(sorted({source for part in parts for source in part.sources}))
    return Bill(
        device_hours=sum(part.device_hours for part in parts),
        kwh=_sum(part.kwh for part in parts),
        co2e_kg=_sum(part.co2e_kg for part in parts),
        money=_sum(part.money for part in parts),
        sources=sources,
    )


def _sum(values: Iterable[float | None]) -> float | None:
    known = list(values)
    if any(value is None for value in known):
        return None
    return sum(value for value in known if value is not None)
